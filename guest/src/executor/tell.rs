//! Telling what happens, on every channel there is, without ever waiting long for one of them.
//!
//! A channel is a file name of the system: a serial port, the set-up port, in tests an ordinary file. It is opened
//! when there is something to say, because the set-up port only appears once its driver is installed, and each
//! has a thread of its own, because a write to a port that nobody reads may hang for ever.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use no43_guest::setup::event::{Event, What};

/// Lines that a channel may be behind; more are dropped, which the numbers of the events show.
const BEHIND: usize = 256;

/// How long the program waits at its end for channels that are behind.
const LAST_LINES: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };

/// All channels, and the numbers of what was told.
pub(crate) struct Teller {
    started: Instant,
    seq: u32,
    lines: Vec<SyncSender<String>>,
    written: Receiver<()>,
}

impl Teller {
    pub(crate) fn new(channels: &[PathBuf]) -> Self {
        let (done, written) = channel();
        let lines = channels.iter().map(|path| {
            let (sender, lines) = sync_channel(BEHIND);
            let (path, done) = (path.clone(), done.clone());
            thread::spawn(move || {
                write_lines(&path, &lines);
                let _ = done.send(());
            });
            sender
        });
        Self { started: Instant::now(), seq: 0, lines: lines.collect(), written }
    }

    /// Tells it on every channel, and to the person who reads standard error.
    pub(crate) fn tell(&mut self, run: u32, what: What) {
        self.seq += 1;
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = Event { run, seq: self.seq, at_ms, what }.line();
        eprint!("{line}");
        for channel in &self.lines {
            let _ = channel.try_send(line.clone()); // full: the channel is stuck, and the next ones carry the news
        }
    }

    /// Waits until everything was written, at most [`LAST_LINES`].
    pub(crate) fn end(self) {
        let end = Instant::now() + LAST_LINES;
        let count = self.lines.len();
        drop(self.lines);
        for _ in 0..count {
            let left = end.saturating_duration_since(Instant::now());
            if self.written.recv_timeout(left).is_err() {
                return;
            }
        }
    }
}

/// Writes until nobody sends any more. A line for which there is no device is lost here; other channels carry it.
fn write_lines(path: &Path, lines: &Receiver<String>) {
    let mut file: Option<File> = None;
    for line in lines {
        // The line feed in front ends what a firmware or a kernel may have left half written.
        let line = format!("\r\n{}\r\n", line.trim_end());
        for _ in 0..2 {
            if file.is_none() {
                file = open(path).ok();
            }
            let Some(open) = &mut file else { break };
            if open.write_all(line.as_bytes()).and_then(|()| open.flush()).is_ok() {
                break;
            }
            file = None; // the device went away and may be back under the same name
        }
    }
}

#[cfg(windows)]
fn open(path: &Path) -> std::io::Result<File> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = OpenOptions::new().write(true).open(path)?;
    if file.metadata().is_ok_and(|meta| meta.is_file()) {
        file.seek(SeekFrom::End(0))?; // a port has no end; a log that is written instead of one does
    }
    crate::windows::api::set_up_serial_port(&file);
    Ok(file)
}

#[cfg(not(windows))]
fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // without NOCTTY a serial port could become the terminal whose hang-up ends us
    let flags = rustix::fs::OFlags::NOCTTY.bits();
    OpenOptions::new().append(true).custom_flags(flags.cast_signed()).open(path)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_hangs_or_is_not_there_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let (stuck, whole) = (dir.path().join("stuck"), dir.path().join("whole"));
        rustix::fs::mknodat(rustix::fs::CWD, &stuck, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::fs::write(&whole, "firmware without a line feed").unwrap();
        let started = Instant::now();
        let mut teller = Teller::new(&[stuck, dir.path().join("none"), whole.clone()]); // nobody reads the first
        let lines = 2 * u32::try_from(BEHIND).unwrap();
        for action in 0..lines {
            teller.tell(1, What::Begun { action, name: "x".repeat(100) });
            thread::sleep(Duration::from_micros(100)); // as an action takes
        }
        teller.end();
        assert!(started.elapsed() < Duration::from_secs(20));
        let text = std::fs::read(whole).unwrap();
        let told: Vec<_> =
            text.split(|byte| *byte == b'\n').filter_map(Event::find).map(Result::unwrap).collect();
        assert_eq!(told.last().map(|event| event.seq), Some(lines), "the last one arrived");
        assert!(told.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    }
}
