//! `no43-guest ring-at-end`: tells the host when another program of this guest ends, so that it need not ask again and again.
//!
//! Written are two lines, `waits PID` and `ended PID`. The port takes one writer at a time, and the host listens to one, so
//! it stays open meanwhile.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::system::{self, BellPort, Running};

/// How long another one may have the port, and a line that nobody takes is tried.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// Pause before a port is tried again that another one has.
const BUSY: Duration = Duration::from_millis(5);

/// The host asks the agent at once, and the agent has to look after the ended process first. On a slow processor the end of
/// this program would cost it several milliseconds.
const AFTER: Duration = Duration::from_millis(100);

/// `no43-guest ring-at-end`
#[derive(clap::Args)]
pub(crate) struct RingAtEnd {
    /// The process
    #[arg(value_name = "PID")]
    pid: u32,
    /// Give up, without ringing, after so long
    #[arg(long, value_name = "N", default_value_t = 86400)]
    seconds: u32,
    /// Another port or file to write to
    #[arg(long, value_name = "PATH")]
    port: Option<PathBuf>,
}

impl RingAtEnd {
    pub(crate) fn run(self) -> Result<()> {
        let Self { pid, seconds, port } = self;
        let path = port.or_else(system::bell_port).context("there is no bell in this guest")?;
        let cannot = || format!("failed to write to {}", path.display());
        let port = open(&path).with_context(cannot)?;
        let running = Running::open(pid).with_context(|| format!("failed to look at process {pid}"))?;
        if let Some(running) = running {
            port.ring(&format!("waits {pid}\n")).with_context(cannot)?;
            let ended = running.wait(Duration::from_secs(seconds.into()));
            if !ended.with_context(|| format!("failed to wait for process {pid}"))? {
                bail!("process {pid} did not end within {seconds} s");
            }
        }
        port.ring(&format!("ended {pid}\n")).with_context(cannot)?;
        thread::sleep(AFTER);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<BellPort> {
    let end = Instant::now() + LIMIT;
    loop {
        match BellPort::open(path) {
            Err(error) if system::is_busy(&error) && Instant::now() < end => thread::sleep(BUSY),
            result => return result,
        }
    }
}

/// A line that nobody took.
pub(crate) fn nobody() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the host does not listen")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
    use std::fs::File;
    use std::process::Command;

    fn ring_at_end(pid: u32, port: &Path) -> Result<()> {
        RingAtEnd { pid, seconds: 60, port: Some(port.to_owned()) }.run()
    }

    #[test]
    fn it_rings_when_the_process_ends_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let port = dir.path().join("port");
        std::fs::write(&port, "").unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        let ringer = thread::spawn({
            let port = port.clone();
            move || ring_at_end(pid, &port)
        });
        let said = || std::fs::read_to_string(&port).unwrap();
        while !said().ends_with('\n') {
            thread::sleep(BUSY);
        }
        assert_eq!(said(), format!("waits {pid}\n"));
        child.kill().unwrap();
        ringer.join().unwrap().unwrap();
        // the process is still a zombie: its parent was not asked for it
        assert_eq!(said(), format!("waits {pid}\nended {pid}\n"));
        child.wait().unwrap();
        ring_at_end(pid, &port).unwrap();
        assert_eq!(said(), format!("waits {pid}\nended {pid}\nended {pid}\n"));
    }

    #[test]
    fn it_gives_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let port = dir.path().join("port");
        std::fs::write(&port, "").unwrap();
        let pid = std::process::id();
        let error = RingAtEnd { pid, seconds: 0, port: Some(port.clone()) }.run().unwrap_err();
        assert_eq!(error.to_string(), format!("process {pid} did not end within 0 s"));
        assert_eq!(std::fs::read_to_string(&port).unwrap(), format!("waits {pid}\n"));
    }

    #[test]
    fn a_port_that_nobody_reads_or_that_is_not_there_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let port = dir.path().join("port");
        let run = || format!("{:#}", ring_at_end(std::process::id(), &port).unwrap_err());
        let cannot = format!("failed to write to {}: ", port.display());
        assert_eq!(run(), format!("{cannot}No such file or directory (os error 2)"));
        mkfifoat(CWD, &port, Mode::RUSR | Mode::WUSR).unwrap();
        assert_eq!(run(), format!("{cannot}No such device or address (os error 6)"));
        // a pipe that is full
        let reader = rustix::fs::open(&port, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
        while rustix::io::write(&reader, &[0; 4096]).is_ok() {}
        assert_eq!(run(), format!("{cannot}the host does not listen"));
        drop(File::from(reader));
    }
}
