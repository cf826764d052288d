//! Short lines about the boot, in the kernel's log and on the console.

use std::fs::{File, OpenOptions};
use std::io::Write;

use rustix::time::{ClockId, clock_gettime};

use crate::linux::{Root, read_text};

/// Level of our lines in the kernel's log: "normal but significant".
const LEVEL: u32 = 5;

/// Writes lines like `no43-guest: agent started after 3.1 s`, the time counted from the kernel's start.
pub(super) struct Log {
    kernel: Option<File>,
    console: Option<File>,
}

impl Log {
    pub(super) fn open(root: &Root) -> Self {
        let open = |path: &str| OpenOptions::new().write(true).open(root.path(path)).ok();
        let kernel = open("dev/kmsg");
        let echoed = kernel.is_some() && console_level(root).is_some_and(|level| LEVEL < level);
        // The kernel itself repeats lines below its console level; with `quiet` it does not.
        let console = if echoed { None } else { open("dev/console") };
        Self { kernel, console }
    }

    /// Says `text` and the time. A console that does not take it is no reason to fail.
    pub(super) fn say(&self, text: &str) {
        let now = clock_gettime(ClockId::Boottime);
        let line = format!("no43-guest: {text} after {}.{} s\n", now.tv_sec, now.tv_nsec / 100_000_000);
        if let Some(mut kernel) = self.kernel.as_ref() {
            let _ = kernel.write_all(format!("<{LEVEL}>{line}").as_bytes());
        }
        if let Some(mut console) = self.console.as_ref() {
            let _ = console.write_all(line.as_bytes());
        }
    }
}

/// Lines whose level is below this number go to the console.
fn console_level(root: &Root) -> Option<u32> {
    read_text(&root.path("proc/sys/kernel/printk")).ok()?.split_whitespace().next()?.parse().ok()
}
