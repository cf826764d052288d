//! The guest program on Linux.

mod bell;
mod command;

pub(crate) mod display;
pub(crate) mod init;
pub(crate) mod kernel_log;
pub(crate) mod paint;
pub(crate) mod pci;
pub(crate) mod ports;
pub(crate) mod power;
mod reload;
pub(crate) mod report;
mod running;
mod scanout;
pub(crate) mod setup;

pub(crate) use bell::BellPort;
pub(crate) use command::{
    Task, actor, bell_port, called_by_another_name, first_start, functions, is_busy, power_off, restart,
    setup_logs,
};
pub(crate) use running::Running;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where `/sys`, `/proc`, `/dev`, `/etc` and `/run` are looked for; not `/` in tests.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// The running system.
    pub(crate) fn real() -> Self {
        Self(PathBuf::from("/"))
    }

    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Path of `relative` (as `sys/class/drm`).
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    /// Our own state, forgotten at every boot: holders of pictures, marks of the init.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("run/no43-guest")
    }
}

/// Reads a small file of the kernel, at most 64 KiB, without the white space at its end.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Names in a directory, sorted; a directory that is not there is empty.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Asks `question` every 50 ms until it has an answer, at most for `limit`.
pub(crate) fn wait_for<T>(limit: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
