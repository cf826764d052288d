//! The port on which the host is told of the ends of programs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;

use crate::bell::{LIMIT, nobody};

/// An open port.
pub(crate) struct BellPort(File);

impl BellPort {
    /// [`crate::windows::is_busy`] tells whether another one has it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().append(true).open(path)?))
    }

    /// Writes a line as a whole, in a thread of its own: without a listener a port may take it never.
    pub(crate) fn ring(&self, line: &str) -> io::Result<()> {
        let (mut port, line) = (self.0.try_clone()?, line.to_owned());
        let (done, written) = channel();
        thread::spawn(move || done.send(port.write_all(line.as_bytes())));
        written.recv_timeout(LIMIT).unwrap_or_else(|_| Err(nobody()))
    }
}
