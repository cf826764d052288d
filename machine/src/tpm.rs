//! A software TPM 2.0 for one machine: swtpm, started before QEMU and ended with it.
//!
//! Its state is a folder that changes at every boot, as the UEFI variables do: every start of a machine gets a copy of its
//! own, and an image is sealed only after swtpm has ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::Process;

/// The file of a TPM 2.0's lasting state inside its folder: keys, counters, PCR banks.
pub const STATE_FILE: &str = "tpm2-00.permall";

/// How long swtpm may take until it listens; it does in milliseconds.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// How often the socket is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is no such program.
    #[error("swtpm is not installed, which makes the virtual TPM: sudo apt install swtpm")]
    Missing,
    /// It could not be started, or its folder not be made.
    #[error("failed to {what}: {why}")]
    Start {
        /// What was tried.
        what: String,
        /// What the system said.
        why: io::Error,
    },
    /// It ended before QEMU could use it.
    #[error("swtpm ended at its start: {said}")]
    Died {
        /// Its own words.
        said: String,
    },
    /// It still runs although QEMU is gone.
    #[error("swtpm (process {pid}) did not end within {} s after its machine", limit.as_secs())]
    Stays {
        /// Its process.
        pid: u32,
        /// How long it had.
        limit: Duration,
    },
}

/// Which process serves a socket; lies beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: u32,
    start_time: u64,
}

/// A running swtpm. Dropping it kills it, unless [`Swtpm::leave_running`] was called.
#[derive(Debug)]
pub struct Swtpm {
    process: Process,
    socket: PathBuf,
    outlives: bool,
}

impl Swtpm {
    /// Starts swtpm with its state in `state` (made if it is not there) and its control socket at `socket`. It ends by itself
    /// when the QEMU that connects to it ends, and the kernel kills it with the thread that started it.
    ///
    /// # Errors
    /// [`TpmError`]; nothing runs then.
    pub fn start(state: &Path, socket: &Path) -> Result<Self, TpmError> {
        Self::spawn(state, socket, &["setpriv", "--pdeathsig", "KILL", "--"])
    }

    /// The same for a machine that outlives its starter, even one that is killed: then swtpm lives as long as QEMU does, and
    /// [`Swtpm::adopt`] finds it. One that an earlier start left there without a QEMU is ended first.
    ///
    /// # Errors
    /// As [`Swtpm::start`].
    pub fn start_lasting(state: &Path, socket: &Path) -> Result<Self, TpmError> {
        if let Some(left) = Self::adopt(socket) {
            left.process.kill_group();
        }
        let tpm = Self::spawn(state, socket, &["setpriv", "--"])?;
        let record = Record { pid: tpm.process.pid(), start_time: tpm.process.start_time() };
        let (file, aside) = (record_of(socket), socket.with_extension("json.new"));
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&aside, bytes))
            .and_then(|()| fs::rename(&aside, &file));
        match written {
            Ok(()) => Ok(tpm),
            Err(why) => Err(TpmError::Start { what: format!("write {}", file.display()), why }),
        }
    }

    /// The swtpm that [`Swtpm::start_lasting`] started at `socket`, if it still runs. It is not ended with this value.
    #[must_use]
    pub fn adopt(socket: &Path) -> Option<Self> {
        let record: Record = serde_json::from_slice(&fs::read(record_of(socket)).ok()?).ok()?;
        let process = Process::adopt(record.pid, record.start_time)?;
        Some(Self { process, socket: socket.to_owned(), outlives: true })
    }

    fn spawn(state: &Path, socket: &Path, before: &[&str]) -> Result<Self, TpmError> {
        let failed = |what: &str, path: &Path| {
            let what = format!("{what} {}", path.display());
            move |why| TpmError::Start { what, why }
        };
        fs::create_dir_all(state).map_err(failed("make the folder", state))?;
        let _ = fs::remove_file(socket);
        // Beside the socket: what lies beside the state is kept with a machine.
        let log = socket.with_extension("log");
        // Absolute paths: swtpm changes its folder. Not --daemon: it must stay ours.
        let state = fs::canonicalize(state).map_err(failed("find", state))?;
        let words = ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate"];
        let mut argv: Vec<String> = before.iter().chain(&words).map(|word| (*word).to_owned()).collect();
        argv.push(format!("dir={},mode=0600", state.display()));
        argv.extend(["--ctrl".to_owned(), format!("type=unixio,path={},mode=0600", socket.display())]);
        let null = File::open("/dev/null").map_err(failed("open", Path::new("/dev/null")))?;
        let process = Process::spawn(&argv, OwnedFd::from(null), None, &log)
            .map_err(failed("start setpriv for", Path::new("swtpm")))?;
        let tpm = Self { process, socket: socket.to_owned(), outlives: false };
        let give_up = Instant::now() + LISTEN_LIMIT;
        while !socket.exists() {
            let ended = tpm.process.wait(LOOK_AGAIN);
            if ended.is_some() || Instant::now() > give_up {
                let said = fs::read_to_string(&log).unwrap_or_default().trim().to_owned();
                // setpriv's exit code when it cannot find the program
                return Err(match ended.and_then(|status| status.code) {
                    Some(127) => TpmError::Missing,
                    _ => TpmError::Died { said },
                });
            }
        }
        Ok(tpm)
    }

    /// Where QEMU finds it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// From now on it lives as long as the QEMU that is connected to it.
    pub fn leave_running(&mut self) {
        self.outlives = true;
        self.process.disown();
    }

    /// Waits for its end after QEMU's; only then its state is at rest.
    ///
    /// # Errors
    /// [`TpmError::Stays`]; it is killed then.
    pub fn wait_end(self, limit: Duration) -> Result<(), TpmError> {
        if self.process.wait(limit).is_some() {
            let _ = fs::remove_file(record_of(&self.socket));
            return Ok(());
        }
        self.process.kill_group();
        Err(TpmError::Stays { pid: self.process.pid(), limit })
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        if !self.outlives && self.process.is_alive() {
            self.process.kill_group();
        }
    }
}

/// Ends an swtpm that waits for a QEMU which never came, in a run directory that is given up.
pub fn end_left(socket: &Path) {
    if let Some(left) = Swtpm::adopt(socket) {
        left.process.kill_group();
    }
}

fn record_of(socket: &Path) -> PathBuf {
    socket.with_extension("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swtpm_listens_and_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let tpm = match Swtpm::start(&dir.path().join("state"), &dir.path().join("tpm.sock")) {
            Err(TpmError::Missing) => {
                eprintln!("skipped: swtpm is not installed (Debian package swtpm)");
                return;
            }
            other => other.unwrap(),
        };
        assert!(tpm.socket().exists());
        let pid = tpm.pid();
        drop(tpm);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_lasting_one_is_found_again_and_replaced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (dir.path().join("state"), dir.path().join("tpm.sock"));
        let mut first = match Swtpm::start_lasting(&state, &socket) {
            Err(TpmError::Missing) => return,
            other => other.unwrap(),
        };
        first.leave_running();
        let pid = first.pid();
        drop(first);
        let found = Swtpm::adopt(&socket).expect("it lives on");
        assert_eq!(found.pid(), pid);
        drop(found);
        let second = Swtpm::start_lasting(&state, &socket).unwrap();
        assert_ne!(second.pid(), pid);
        assert!(Swtpm::adopt(&socket).is_some_and(|now| now.pid() == second.pid()), "the first one is gone");
        drop(second);
        assert!(Swtpm::adopt(&socket).is_none());
        assert!(!state.join("tpm.log").exists(), "nothing lies beside the state");
    }

    #[test]
    fn a_state_that_cannot_be_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Swtpm::start(&file.join("state"), &dir.path().join("tpm.sock")).unwrap_err().to_string();
        assert!(error.contains("failed to make the folder"), "{error}");
    }
}
