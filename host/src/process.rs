//! Which process is meant, so that a number used again by another process is not mistaken for it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Roots;
use crate::roots::{read_line, read_small};

/// What no other program is called with.
const QEMU_ARGUMENT: &[u8] = b"-nodefaults";

/// A process by number and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks after boot: field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
}

impl ProcessRef {
    /// No process, of which none is alive.
    pub const NOBODY: ProcessRef = ProcessRef { pid: 0, start_time: 0 };

    /// The process that has this number now; `None` where there is none, or only a zombie.
    pub fn of(pid: u32, roots: &Roots) -> Option<Self> {
        let stat = read_small(&roots.proc_.join(pid.to_string()).join("stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        // a zombie has closed its files and let go of its devices: nothing of it can be disturbed
        (!matches!(state, 'Z' | 'X')).then_some(ProcessRef { pid, start_time })
    }

    /// This process itself.
    pub fn current(roots: &Roots) -> Self {
        let pid = std::process::id();
        ProcessRef::of(pid, roots).unwrap_or(ProcessRef { pid, start_time: 0 })
    }

    /// Whether exactly this process still runs.
    pub fn is_alive(&self, roots: &Roots) -> bool {
        ProcessRef::of(self.pid, roots) == Some(*self)
    }

    /// A living QEMU with an argument that names something below `dir`: a machine is known by its run directory. Its TPM and
    /// its network may be programs of their own that name the same directory; every QEMU of ours has [`QEMU_ARGUMENT`].
    pub(crate) fn qemu_that_names(dir: &Path, roots: &Roots) -> Option<Self> {
        let mut wanted = dir.as_os_str().as_bytes().to_vec();
        wanted.push(b'/');
        let processes = fs::read_dir(&roots.proc_).ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != std::process::id()).find_map(|pid| {
            let line = fs::read(roots.proc_.join(pid.to_string()).join("cmdline")).ok()?;
            let is_qemu = line.split(|byte| *byte == 0).any(|argument| argument == QEMU_ARGUMENT);
            let names_it = is_qemu && line.windows(wanted.len()).any(|part| part == wanted);
            names_it.then(|| ProcessRef::of(pid, roots))?
        })
    }

    /// The name that the kernel keeps for it, as `ps` shows it.
    pub fn name(&self, roots: &Roots) -> Option<String> {
        name_of(self.pid, roots)
    }
}

pub(crate) fn name_of(pid: u32, roots: &Roots) -> Option<String> {
    read_line(&roots.proc_.join(pid.to_string()).join("comm")).ok()
}

/// State and start time. The name in brackets may hold spaces and brackets itself, so reading starts behind the last one.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "42 (a) (b c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (cut"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_number_used_again_is_another_process() {
        let roots = Roots::real();
        let me = ProcessRef::current(&roots);
        assert!(me.is_alive(&roots));
        assert!(!ProcessRef { start_time: me.start_time + 1, ..me }.is_alive(&roots));
    }
}
