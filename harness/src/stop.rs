//! The token by which a person (Ctrl-C) or a limit ends a run in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared between a signal handler and the run. Once set it stays set.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A token that nobody has set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop at its next safe point.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Was a stop asked for?
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself, for `signal_hook::flag::register`.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
