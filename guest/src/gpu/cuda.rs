//! The pieces of work with CUDA: a kernel's answer, a pattern in video memory, copies and their speed.

use no43_guest::work::{WorkAdapter, WorkCause, WorkResult};
use std::ffi::CStr;
use std::time::{Duration, Instant};

use super::ptx::ptx;
use super::{Stop, Task, answer, metric, rate};
use crate::native::cuda::{Absent, Context, Cuda, Failed, INVALID_DEVICE, Memory, NO_DEVICE};

/// NVIDIA's vendor id.
const NVIDIA: u16 = 0x10de;

/// The kernels, see `data/cuda.ptx`; the driver compiles them for the card.
const PTX: &CStr = ptx!("cuda.ptx");

/// Words that the checksum is made over: 4 MiB, and no multiple of a group.
const WORDS: usize = (1 << 20) - 7;

/// Size of a copy and how often it is done each way; the first time is not counted.
const COPY_WORDS: usize = 8 << 20;
const COPIES: u32 = 5;

/// Largest single allocation of the memory test, in bytes.
const CHUNK: u64 = 512 << 20;

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::call(failed.text)
    }
}

/// Loads CUDA, opens the card, and notes which it is.
pub(super) fn with_card(
    task: &Task,
    result: &mut WorkResult,
    work: impl FnOnce(&Context<'_>, &mut WorkResult) -> Result<(), Stop>,
) -> Result<(), Stop> {
    if task.target.software {
        return Err(Stop::new(WorkCause::NotSupported, "CUDA has no software renderer"));
    }
    let is_nvidia = task.target.vendor() == Some(NVIDIA);
    // Without a card of NVIDIA's, "no device" is the right answer; with one, it is the card's failure.
    let no_device = |failed: Failed| match failed.code {
        NO_DEVICE | INVALID_DEVICE if !is_nvidia => Stop::new(
            WorkCause::NoComputeDevice,
            format!("no CUDA device is {}: {}", task.target.wanted, failed.text),
        ),
        _ => failed.into(),
    };
    let cuda = Cuda::load().map_err(|absent| match absent {
        Absent::Library(text) => Stop::new(WorkCause::NoLibrary, text),
        Absent::Init(failed) => no_device(failed),
    })?;
    let Some(address) = &task.target.address else {
        let reason =
            format!("where {} is on the bus is not known, and CUDA is asked by that", task.target.wanted);
        return Err(Stop::new(WorkCause::NoComputeDevice, reason));
    };
    let card = cuda.open(address).map_err(no_device)?;
    let (major, minor) = card.capability;
    let (cuda_major, cuda_minor) = (card.driver / 1000, card.driver % 1000 / 10);
    result.adapter = Some(WorkAdapter {
        name: card.name.clone(),
        address: Some(address.clone()),
        id: task.target.id.map(|(vendor, device)| format!("{vendor:04x}:{device:04x}")),
        software: Some(false),
        driver: Some(format!("CUDA {cuda_major}.{cuda_minor}, compute capability {major}.{minor}")),
        memory_bytes: Some(card.memory),
    });
    work(&card, result)
}

/// A chain of operations over a buffer, compared word by word with what the processor computes.
pub(super) fn checksum(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    with_card(task, result, |card, result| {
        let kernels = card.module(PTX, &[c"no43_chain"])?;
        let input = answer::pattern_words(WORDS, task.seed);
        let memory = card.allocate(WORDS * 4)?;
        memory.write(&input)?;
        let start = Instant::now();
        card.run(kernels[0], &memory, task.seed, None)?;
        result.metrics.push(metric("kernel-time", start.elapsed().as_micros() as u64, "us"));
        result.metrics.push(metric("words", WORDS as u64, "count"));
        let mut output = vec![0_u32; WORDS];
        memory.read(&mut output)?;
        answer::compare_chain(&input, &output, task.seed).map_err(wrong)
    })
}

pub(super) fn wrong(text: String) -> Stop {
    Stop::new(WorkCause::WrongAnswer, text)
}

/// Fills a share of the free memory with a pattern and looks at all of it again, after all of it was written.
pub(super) fn memory(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    with_card(task, result, |card, result| {
        let kernels = card.module(PTX, &[c"no43_fill", c"no43_verify"])?;
        let findings = card.allocate(16)?;
        let wanted = card.free()? / 100 * u64::from(task.memory_percent);
        let chunks = chunks(card, wanted)?;
        let bytes: u64 = chunks.iter().map(|(_, bytes)| bytes).sum();
        result.metrics.push(metric("tested", bytes, "bytes"));
        let seed = |n: usize| task.seed.wrapping_add(n as u32); // another pattern in each chunk shows aliases
        let start = Instant::now();
        for (n, (memory, _)) in chunks.iter().enumerate() {
            card.run(kernels[0], memory, seed(n), None)?;
        }
        result.metrics.push(metric("write", rate(bytes, start.elapsed()), "bytes/s"));
        findings.write(&[0_u64, u64::MAX])?;
        let mut before = 0;
        let start = Instant::now();
        for (n, (memory, _)) in chunks.iter().enumerate() {
            card.run(kernels[1], memory, seed(n), Some(&findings))?;
            let mut found = [0_u64; 2];
            findings.read(&mut found)?;
            if found[0] > 0 {
                let place = before + found[1].saturating_mul(4);
                let text = format!(
                    "{} words of the video memory lost their pattern, the first at {place:#x} of {bytes:#x} bytes",
                    found[0]
                );
                return Err(wrong(text));
            }
            before += chunks[n].1;
        }
        result.metrics.push(metric("read", rate(bytes, start.elapsed()), "bytes/s"));
        Ok(())
    })
}

/// Takes memory in large pieces until there is as much as wanted. Less than half of it is an error: then the card has
/// it, and does not give it.
fn chunks<'a>(card: &Context<'a>, wanted: u64) -> Result<Vec<(Memory<'a>, u64)>, Stop> {
    let (mut chunks, mut left, mut size) = (Vec::new(), wanted & !0xfff, CHUNK);
    while left > 0 && size >= 1 << 20 {
        let bytes = left.min(size);
        match card.allocate(bytes as usize) {
            Ok(memory) => {
                chunks.push((memory, bytes));
                left -= bytes;
            }
            Err(_) if size > 1 << 20 => size /= 2,
            Err(failed) if left > wanted / 2 => return Err(failed.into()),
            Err(_) => break,
        }
    }
    if chunks.is_empty() {
        return Err(Stop::call("the card has no free memory to test"));
    }
    Ok(chunks)
}

/// Copies to the card and back, from memory that the card reaches by itself, and compares.
pub(super) fn copy(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    with_card(task, result, |card, result| {
        let bytes = (COPY_WORDS * 4) as u64;
        let (source, target) = (card.host_words(COPY_WORDS)?, card.host_words(COPY_WORDS)?);
        source.copy_from_slice(&answer::pattern_words(COPY_WORDS, task.seed));
        let memory = card.allocate(COPY_WORDS * 4)?;
        let (mut there, mut back) = (Duration::MAX, Duration::MAX);
        for _ in 0..=COPIES {
            let start = Instant::now();
            memory.write(source)?;
            there = there.min(start.elapsed());
            let start = Instant::now();
            memory.read(target)?;
            back = back.min(start.elapsed());
        }
        result.metrics.push(metric("to-card", rate(bytes, there), "bytes/s"));
        result.metrics.push(metric("from-card", rate(bytes, back), "bytes/s"));
        answer::compare(source.iter().copied(), target).map_err(wrong)
    })
}
