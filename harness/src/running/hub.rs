//! Events on their way to whoever follows: kept for those who come later, and never waited for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::event::{Happened, Line};

/// A machine that reboots every minute for months must not fill the memory.
const KEPT_MAX: usize = 500;
/// A follower that is further behind than this is dropped.
const BEHIND_MAX: usize = 1000;

/// The events of one run.
#[derive(Debug)]
pub(super) struct Hub {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    kept: VecDeque<String>,
    followers: Vec<SyncSender<String>>,
    file: Option<File>,
}

impl Hub {
    /// Events also go to a file, for whoever looks after a crash.
    pub(super) fn new(file: &Path) -> Self {
        let file = File::options().create(true).append(true).open(file).ok();
        Self {
            began: Instant::now(),
            inner: Mutex::new(Inner { kept: VecDeque::new(), followers: Vec::new(), file }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn say(&self, what: Happened) {
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = Self::line(at_ms, what);
        let mut inner = self.lock();
        if let Some(file) = &mut inner.file {
            let _ = file.write_all(line.as_bytes());
        }
        inner.followers.retain(|follower| follower.try_send(line.clone()).is_ok());
        if inner.kept.len() == KEPT_MAX {
            // the beginning says what this run is, so the oldest of the rest goes
            inner.kept.remove(KEPT_MAX / 10);
        }
        inner.kept.push_back(line);
    }

    /// An event as it is sent.
    pub(super) fn line(at_ms: u64, what: Happened) -> String {
        let text = serde_json::to_string(&Line { at_ms, what });
        format!("{}\n", text.unwrap_or_default())
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.say(Happened::Note { text: text.into(), warning: false });
    }

    pub(super) fn warn(&self, text: impl Into<String>) {
        self.say(Happened::Note { text: text.into(), warning: true });
    }

    /// All events so far, and those to come.
    pub(super) fn follow(&self) -> (Vec<String>, Receiver<String>) {
        let (sender, receiver) = sync_channel(BEHIND_MAX);
        let mut inner = self.lock();
        inner.followers.push(sender);
        (inner.kept.iter().cloned().collect(), receiver)
    }

    /// Ends every follower's stream.
    pub(super) fn close(&self) {
        self.lock().followers.clear();
    }
}
