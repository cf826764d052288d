//! The directory of one running machine: its sockets, its error output, and the record by which a later no43 finds it.
//!
//! The path is short on purpose: the kernel takes at most 107 bytes for a socket's path and says only "invalid argument".

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process;

/// The longest socket path in bytes.
pub const SOCKET_PATH_MAX: usize = 107;

/// The paths inside one machine's run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirs {
    dir: PathBuf,
}

/// What `machine.json` says about a started machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The machine's name.
    pub name: String,
    /// QEMU's process.
    pub pid: u32,
    /// When that process started, in clock ticks since boot (field 22 of `/proc/PID/stat`): pids are used again.
    pub start_time: u64,
    /// Its control socket.
    pub qmp_socket: PathBuf,
    /// Its agent's socket.
    pub agent_socket: PathBuf,
    /// The first argument is QEMU itself.
    pub argv: Vec<String>,
}

impl RunRecord {
    /// Whether this very QEMU still runs; looks only.
    pub fn is_running(&self) -> bool {
        process::is_running(self.pid, self.start_time)
    }
}

impl RunDirs {
    /// The paths under `dir`, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        RunDirs { dir: dir.into() }
    }

    /// Makes the directory (for its owner only) unless it is there.
    ///
    /// # Errors
    /// What the system says; `PermissionDenied` if it is there and others may write into it: they could replace a socket.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        if fs::metadata(&self.dir)?.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may write into it"))
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// QEMU's control socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The guest agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.join("ga.sock")
    }

    /// The socket of the port on which the guest program rings.
    pub fn bell_socket(&self) -> PathBuf {
        self.dir.join("bell.sock")
    }

    /// The socket of the virtio-serial port `name`.
    pub fn port_socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    /// Where QEMU's error output goes.
    pub fn stderr(&self) -> PathBuf {
        self.dir.join("qemu.err")
    }

    /// The machine's own copy of the UEFI variables, if the caller keeps it here.
    pub fn vars(&self) -> PathBuf {
        self.dir.join("vars.fd")
    }

    /// The record of the running machine.
    pub fn record(&self) -> PathBuf {
        self.dir.join("machine.json")
    }

    /// Reads the record.
    ///
    /// # Errors
    /// `NotFound` if no machine was started here; `InvalidData` if it is not a record.
    pub fn read_record(&self) -> io::Result<RunRecord> {
        serde_json::from_slice(&fs::read(self.record())?).map_err(io::Error::from)
    }

    /// The record of the QEMU that runs here. Where its starter died between starting QEMU and writing the record, the QEMU
    /// is found by its arguments, which name this directory's agent socket.
    ///
    /// # Errors
    /// As [`RunDirs::read_record`].
    pub fn running_record(&self) -> io::Result<RunRecord> {
        match self.read_record() {
            Ok(record) if record.is_running() => Ok(record),
            other => self.find_process().map_or(other, Ok),
        }
    }

    fn find_process(&self) -> Option<RunRecord> {
        let socket = self.agent_socket();
        let words = [&b"path="[..], socket.as_os_str().as_encoded_bytes(), b","].concat();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            if !line.windows(words.len()).any(|part| part == words) {
                return None; // nearly every process of a host, at every start of a machine
            }
            let argv: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            if !argv.first()?.contains("qemu") {
                return None;
            }
            Some(RunRecord {
                name: name_in(&argv)?,
                pid,
                start_time: process::start_time(pid).ok()?,
                qmp_socket: self.qmp_socket(),
                agent_socket: socket.clone(),
                argv,
            })
        })
        .next()
    }

    /// Written aside and renamed, so that a reader never sees half of it. Not synced: after a power cut there is no QEMU.
    pub(crate) fn write_record(&self, record: &RunRecord) -> io::Result<()> {
        let aside = self.dir.join("machine.json.new");
        File::create(&aside)?.write_all(&serde_json::to_vec_pretty(record)?)?;
        fs::rename(aside, self.record())
    }

    /// The last `max` bytes of QEMU's error output; empty if there is none.
    pub fn stderr_tail(&self, max: usize) -> String {
        let text = fs::read(self.stderr()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(max)..]).trim().to_owned()
    }
}

/// What `-name guest=NAME,…` says.
fn name_in(argv: &[String]) -> Option<String> {
    let at = argv.iter().position(|word| word == "-name")?;
    let name = argv.get(at + 1)?.strip_prefix("guest=")?;
    Some(name.split(',').next()?.to_owned())
}
