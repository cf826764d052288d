//! A software TPM 2.0 for one machine: swtpm, started before QEMU and ended with it.
//!
//! Its state is a folder that changes at every boot, as the UEFI variables do: every start of a machine gets a copy of its
//! own, and an image is sealed only after swtpm has ended.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// The file of a TPM 2.0's lasting state inside its folder: keys, counters, PCR banks.
pub const STATE_FILE: &str = "tpm2-00.permall";

/// How long swtpm may take until it listens; it does in milliseconds.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// How often the socket is looked for, and the end of the process.
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

/// A running swtpm. Dropping it kills it.
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
    socket: PathBuf,
}

impl Swtpm {
    /// Starts swtpm with its state in `state` (made if it is not there) and its control socket at `socket`. It ends by itself
    /// when the QEMU that connects to it ends, and the kernel kills it with the thread that started it.
    ///
    /// # Errors
    /// [`TpmError`]; nothing runs then.
    pub fn start(state: &Path, socket: &Path) -> Result<Self, TpmError> {
        let failed = |what: &str, path: &Path| {
            let what = format!("{what} {}", path.display());
            move |why| TpmError::Start { what, why }
        };
        fs::create_dir_all(state).map_err(failed("make the folder", state))?;
        let _ = fs::remove_file(socket);
        let log = state.with_extension("log");
        let errors = fs::File::create(&log).map_err(failed("create", &log))?;
        // Absolute paths: swtpm changes its folder. Not --daemon: it must stay ours.
        let state = fs::canonicalize(state).map_err(failed("find", state))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "swtpm", "socket", "--tpm2", "--terminate", "--tpmstate"]);
        command.arg(format!("dir={},mode=0600", state.display()));
        command.arg("--ctrl").arg(format!("type=unixio,path={},mode=0600", socket.display()));
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn().map_err(failed("start setpriv for", Path::new("swtpm")))?;
        let mut tpm = Self { child, socket: socket.to_owned() };
        let give_up = Instant::now() + LISTEN_LIMIT;
        while !socket.exists() {
            let ended = tpm.child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > give_up {
                let said = fs::read_to_string(&log).unwrap_or_default().trim().to_owned();
                // setpriv's exit code when it cannot find the program
                return Err(match ended.and_then(|status| status.code()) {
                    Some(127) => TpmError::Missing,
                    _ => TpmError::Died { said },
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(tpm)
    }

    /// Where QEMU finds it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for its end after QEMU's; only then its state is at rest.
    ///
    /// # Errors
    /// [`TpmError::Stays`]; it is killed then.
    pub fn wait_end(mut self, limit: Duration) -> Result<(), TpmError> {
        let give_up = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > give_up {
                return Err(TpmError::Stays { pid: self.child.id(), limit });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
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
        let pid = tpm.child.id();
        drop(tpm);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
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
