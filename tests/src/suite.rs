//! Cases, and how libtest-mimic runs them.

use crate::capability;
use crate::scene::Scene;
use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use no43_host::Roots;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One case of a suite.
#[derive(Clone, Copy)]
pub struct Case {
    /// Read as a sentence: what holds.
    pub name: &'static str,
    /// Names of capabilities, see [`capability`].
    pub needs: &'static [&'static str],
    /// The case itself.
    pub body: fn(&Scene) -> Result<()>,
}

impl Case {
    /// A case that needs the built `no43` and nothing else.
    pub const fn new(name: &'static str, body: fn(&Scene) -> Result<()>) -> Self {
        Self { name, needs: &["no43"], body }
    }

    /// The same with needs of its own.
    #[must_use]
    pub const fn needs(mut self, needs: &'static [&'static str]) -> Self {
        self.needs = needs;
        self
    }
}

/// How a suite's cases run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Several at once.
    Parallel,
    /// As many at once as there are cores, and memory, for: each case keeps one emulated CPU busy.
    ACoreEach,
    /// One after the other: they share something, or each fills the machine.
    Serial,
}

/// What a case of [`Order::ACoreEach`] may take of the machine's memory: an emulated host with guests in it.
const SHARE_MIB: u64 = 4096;

/// Where images are kept while a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// An empty store for each case.
    Own,
    /// The person's store.
    Shared,
}

static TIMES: Mutex<Vec<(&str, Duration, bool)>> = Mutex::new(Vec::new());

/// Runs a suite: the `main` of a test program.
pub fn main(cases: &'static [Case], order: Order, images: Images) -> ExitCode {
    let mut arguments = Arguments::from_args();
    match order {
        Order::Parallel => {}
        Order::ACoreEach => arguments.test_threads = arguments.test_threads.or(Some(shares())),
        Order::Serial => arguments.test_threads = Some(1),
    }
    let trials = cases.iter().map(|case| trial(case, images)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_times();
    conclusion.exit_code()
}

/// How many cases of [`Order::ACoreEach`] this machine has room for; at least one.
fn shares() -> usize {
    let (processors, memory_mib) = no43_host::size(&Roots::real());
    let for_memory = u32::try_from(memory_mib / SHARE_MIB).unwrap_or(u32::MAX);
    usize::try_from(processors.min(for_memory).max(1)).unwrap_or(1)
}

fn trial(case: &'static Case, images: Images) -> Trial {
    Trial::ignorable_test(case.name, move || {
        if let Some(reason) = missing(case)? {
            return Ok(Completion::ignored_with(reason));
        }
        let start = Instant::now();
        let outcome = perform(case, images);
        let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
        times.push((case.name, start.elapsed(), outcome.is_ok()));
        outcome.map(|()| Completion::Completed).map_err(|e| Failed::from(format!("{e:#}")))
    })
    .with_kind(case.needs.iter().filter(|n| **n != "no43").copied().collect::<Vec<_>>().join(" "))
}

/// Why the case cannot run here; an unknown name fails it.
fn missing(case: &Case) -> Result<Option<String>, Failed> {
    for name in case.needs {
        match capability::check(name) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Ok(Some(format!("{name}: {reason}"))),
            Err(unknown) => return Err(unknown.to_string().into()),
        }
    }
    Ok(None)
}

fn perform(case: &Case, images: Images) -> Result<()> {
    let mut scene = Scene::new(case.name)?;
    if images == Images::Shared {
        scene = scene.with_shared_store();
    }
    (case.body)(&scene)?;
    scene.end()
}

fn print_times() {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort_by_key(|(_, time, _)| std::cmp::Reverse(*time));
    for (name, time, passed) in times.iter() {
        println!("  {} {:>7.1} s  {name}", if *passed { "✔" } else { "✘" }, time.as_secs_f64());
    }
}
