//! The piece of work with Vulkan: a compute shader over words that went through the device's own memory.

use no43_guest::work::{WorkAdapter, WorkCause, WorkResult};
use std::time::Instant;

use super::{Stop, Task, answer, metric};
use crate::native::vulkan::{Absent, Device, Vulkan};

/// The shader, see `data/chain.comp`.
const SHADER: &[u8] = include_bytes!("data/chain.spv");

/// Words that are worked on: 4 MiB, and no multiple of a group.
const WORDS: usize = (1 << 20) - 5;

pub(super) fn compute(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    let vulkan = Vulkan::load().map_err(|absent| match absent {
        Absent::Library(text) => Stop::new(WorkCause::NoLibrary, text),
        // the loader without any driver; a broken driver of the card is told by other checks, and by name here
        Absent::Instance(text) => {
            Stop::new(WorkCause::NoComputeDevice, format!("Vulkan is here without a driver: {text}"))
        }
    })?;
    let devices = vulkan.devices().map_err(Stop::call)?;
    let adapters: Vec<WorkAdapter> = devices.iter().map(adapter).collect();
    let chosen = task.target.find("Vulkan", &adapters)?;
    result.adapter = Some(adapters[chosen].clone());
    let code: Vec<u32> =
        SHADER.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let input = answer::pattern_words(WORDS, task.seed);
    let start = Instant::now();
    let output = vulkan.compute(&devices[chosen], &code, &input, task.seed).map_err(Stop::call)?;
    result.metrics.push(metric("time", start.elapsed().as_micros() as u64, "us"));
    result.metrics.push(metric("words", WORDS as u64, "count"));
    answer::compare_chain(&input, &output, task.seed).map_err(|text| Stop::new(WorkCause::WrongAnswer, text))
}

fn adapter(device: &Device) -> WorkAdapter {
    let place = device
        .place
        .map(|[domain, bus, slot, function]| format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"));
    let v = device.driver;
    let driver = match device.vendor {
        0x10de => format!("{}.{}.{}", v >> 22, v >> 14 & 0xff, v >> 6 & 0xff), // NVIDIA's own packing
        _ => format!("{}.{}.{}", v >> 22, v >> 12 & 0x3ff, v & 0xfff),
    };
    WorkAdapter {
        name: device.name.clone(),
        address: place,
        id: Some(format!("{:04x}:{:04x}", device.vendor, device.device)),
        software: Some(device.software),
        driver: Some(driver),
        memory_bytes: Some(device.memory),
    }
}
