//! This process' terminal, connected to a console or a shell on the other end of a socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-].
pub const LEAVE: u8 = 0x1d;

/// Bytes in both directions until Ctrl-], the end of our input and of the shell, `end` from the other side, or `over`.
///
/// # Errors
/// What the terminal or the port says.
pub fn carry(port: &UnixStream, end: Option<u8>, mut over: impl FnMut() -> bool) -> io::Result<()> {
    let (stdin, mut stdout) = (io::stdin(), io::stdout());
    let mut from_person = Some(stdin.as_fd());
    let mut chunk = [0; 4096];
    let mut last_look = Instant::now();
    loop {
        let [typed, said] = readable(from_person, port.as_fd())?;
        if said {
            let count = (&mut &*port).read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            let said = &chunk[..count];
            let last = end.and_then(|end| said.iter().position(|byte| *byte == end));
            stdout.write_all(&said[..last.unwrap_or(count)])?;
            stdout.flush()?;
            if last.is_some() {
                return Ok(());
            }
        }
        if typed {
            match rustix::io::read(stdin.as_fd(), &mut chunk)? {
                // A script's input is over; its commands' output is still to come.
                0 => from_person = None,
                count => {
                    let keys = &chunk[..count];
                    let leave = keys.iter().position(|key| *key == LEAVE);
                    (&mut &*port).write_all(&keys[..leave.unwrap_or(count)])?;
                    if leave.is_some() {
                        return Ok(());
                    }
                }
            }
        }
        if !said && last_look.elapsed() > Duration::from_millis(100) {
            last_look = Instant::now();
            if over() {
                return Ok(());
            }
        }
    }
}

fn readable(first: Option<BorrowedFd<'_>>, second: BorrowedFd<'_>) -> io::Result<[bool; 2]> {
    let mut fds = vec![PollFd::from_borrowed_fd(second, PollFlags::IN)];
    fds.extend(first.map(|first| PollFd::from_borrowed_fd(first, PollFlags::IN)));
    let tick = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    match poll(&mut fds, Some(&tick)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok([false, false]),
        Err(error) => return Err(error.into()),
    }
    let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
    Ok([ready(fds.get(1)), ready(fds.first())])
}

/// The terminal without line editing and echo, as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// Sets it; nothing where there is no terminal.
    pub fn set() -> RawTerminal {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        RawTerminal(before)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
