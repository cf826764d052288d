//! Ctrl-C: once asks the run to stop in order, twice leaves at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use no43_harness::exit_codes;
use no43_harness::stop::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The signals by which people and services end a program.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// A stop token that the first ending signal sets. The second one ends the process and its throw-away machines; what the
/// run then leaves bound is given back by the next command that changes something.
pub(crate) fn stop_token() -> std::io::Result<Stop> {
    let stop = Stop::new();
    let mut signals = Signals::new(ENDING)?;
    let asked = stop.clone();
    std::thread::spawn(move || {
        for (before, _) in signals.forever().enumerate() {
            match before {
                0 => asked.set(),
                _ => leave(),
            }
        }
    });
    Ok(stop)
}

/// Out, with nothing undone that takes time.
fn leave() -> ! {
    let killed = no43_machine::process::kill_own();
    if killed.is_empty() {
        eprintln!("no43: left at once; 'no43 release' puts right what is left behind");
    } else {
        eprintln!("no43: left at once, its machine was killed; 'no43 release' gives the card back");
    }
    std::process::exit(i32::from(exit_codes::INTERRUPTED))
}

/// Ending signals, counted: for a command that passes the first one on and decides itself about the second.
#[derive(Debug)]
pub(crate) struct Interrupts {
    count: Arc<AtomicU32>,
    stop: Stop,
}

impl Interrupts {
    /// From now on no ending signal ends this process by itself.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Self::catch_these(&ENDING)
    }

    /// The same for a command that only looks at what lives elsewhere: a terminal that closes ends it at once.
    pub(crate) fn catch_but_hangup() -> std::io::Result<Self> {
        Self::catch_these(&[SIGINT, SIGTERM])
    }

    fn catch_these(signals: &[i32]) -> std::io::Result<Self> {
        let (count, stop) = (Arc::new(AtomicU32::new(0)), Stop::new());
        let mut signals = Signals::new(signals)?;
        let (counted, asked) = (Arc::clone(&count), stop.clone());
        std::thread::spawn(move || {
            for _ in signals.forever() {
                asked.set();
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { count, stop })
    }

    /// How often one has come.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// Set by the first one.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }
}
