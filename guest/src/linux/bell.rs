//! The port on which the host is told of the ends of programs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::bell::{LIMIT, nobody};

/// An open port.
pub(crate) struct BellPort(File);

impl BellPort {
    /// [`crate::linux::is_busy`] tells whether another one has it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // without a listener, an ordinary write would wait for one
        let nonblock = OFlags::NONBLOCK.bits().cast_signed();
        Ok(Self(OpenOptions::new().append(true).custom_flags(nonblock).open(path)?))
    }

    /// Writes a line as a whole.
    pub(crate) fn ring(&self, line: &str) -> io::Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            match rustix::io::write(&self.0, line.as_bytes()) {
                Ok(count) if count == line.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    let left = Timespec::try_from(left).map_err(io::Error::other)?;
                    if poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&left))? == 0 {
                        return Err(nobody());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
