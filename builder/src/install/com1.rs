//! What arrives on COM1: a file that QEMU appends to, followed as it grows, cut into lines and cleaned.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use no43_guest::setup::event::{Event, LINE_LIMIT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::watch::Seen;

/// How long the follower sleeps at most without looking whether it is still wanted.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// Bytes without a line feed after which they count as a line: a guest may never write one.
const LONGEST: usize = LINE_LIMIT + 1024;

/// Tells `tell` every line of `file` until `stop` is set or `tell` says no. The file may appear later.
pub(crate) fn follow(file: &Path, stop: &Arc<AtomicBool>, mut tell: impl FnMut(Seen) -> bool) {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok();
    if let (Some(watch), Some(folder)) = (&watch, file.parent()) {
        // Of the folder, because QEMU may make the file anew; without it the sleep alone makes us look.
        let _ = inotify::add_watch(watch, folder, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE);
    }
    let (mut reader, mut lines, mut chunk) = (None, Lines::default(), [0; 4096]);
    loop {
        if reader.is_none() {
            reader = File::open(file).ok();
        }
        let ended = stop.load(Ordering::Acquire);
        while let Some(n @ 1..) = reader.as_mut().and_then(|reader| reader.read(&mut chunk).ok()) {
            if !lines.add(&chunk[..n]).into_iter().all(&mut tell) {
                return;
            }
        }
        if ended {
            return;
        }
        match &watch {
            Some(watch) => {
                let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&LOOK_UP));
                let mut space = [std::mem::MaybeUninit::uninit(); 4096];
                let mut events = inotify::Reader::new(watch, &mut space);
                while events.next().is_ok() {}
            }
            None => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

/// Bytes that wait for their line feed.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => seen.extend(understand(&std::mem::take(&mut self.0))),
                byte => self.0.push(*byte),
            }
            if self.0.len() > LONGEST {
                seen.extend(understand(&std::mem::take(&mut self.0)));
            }
        }
        seen
    }
}

fn understand(line: &[u8]) -> Option<Seen> {
    match Event::find(line) {
        Some(Ok(event)) => Some(Seen::Guest(event)),
        // A damaged line of ours is a sign of life; what it said comes again in a later one, or is missed by a deadline.
        Some(Err(_)) => Some(Seen::Line("a damaged line of the guest program".to_owned())),
        None => {
            let text = plain(line);
            (!text.is_empty()).then_some(Seen::Line(text))
        }
    }
}

/// Without the escape sequences with which firmware moves its cursor, and without other control characters.
pub(super) fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next_if_eq(&'[').is_some() {
                while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
            }
            chars.next();
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out.trim().chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn the_firmwares_cursor_moves_are_taken_out() {
        let line = b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: starting Boot0001 \"x\"\x1b[0m\x07";
        assert_eq!(plain(line), "BdsDxe: starting Boot0001 \"x\"");
    }

    #[test]
    fn a_growing_file_is_followed_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("com1.log");
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, seen) = std::sync::mpsc::channel();
        let follower = {
            let (path, stop) = (path.clone(), Arc::clone(&stop));
            std::thread::spawn(move || follow(&path, &stop, |seen| sender.send(seen).is_ok()))
        };
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(seen.recv().unwrap(), Seen::Line("one".into()));
        file.write_all(b"o\n@no43 {\"what\":{\"event\":\"begun\",\"action\":0,\"name\":\"a\"}}\nlast\n")
            .unwrap();
        assert_eq!(seen.recv().unwrap(), Seen::Line("two".into()));
        assert!(matches!(seen.recv().unwrap(), Seen::Guest(_)));
        assert_eq!(seen.recv().unwrap(), Seen::Line("last".into()));
        stop.store(true, Ordering::Release);
        follower.join().unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let mut lines = Lines::default();
            let at = cut.min(bytes.len());
            let mut seen = lines.add(&bytes[..at]);
            seen.extend(lines.add(&bytes[at..]));
            for seen in seen {
                if let Seen::Line(text) = seen {
                    prop_assert!(!text.contains(char::is_control));
                }
            }
        }
    }
}
