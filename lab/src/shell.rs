//! `lab shell`: a terminal of the lab host, over a virtio-serial port.
//!
//! The port is no terminal, so `script` makes one inside. Ctrl-] leaves; the lab stays up.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use no43_machine::qmp::wait_event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{LabError, Trouble};
use crate::inside;
use crate::outer::{Lab, SHELL_PORT};

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// For the shell to open the port.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Connects this terminal to a shell in the lab host until the shell ends or the person leaves it. Returns the exit code
/// for the command line.
///
/// # Errors
/// A lab fault, or a terminal that cannot be set.
pub fn shell(lab: &Lab) -> Result<u8, LabError> {
    let phase = "opening a shell in the lab";
    let terminal = |why: io::Error| LabError::File { what: "use", path: "/dev/tty".into(), why };
    let port = UnixStream::connect(lab.machine().dirs().port_socket(SHELL_PORT));
    let port = port.map_err(|error| lab.fault(phase, &Trouble::Said(error.to_string())))?;
    let events = lab.machine().subscribe();
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0);
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    let (rows, columns) = (rows.to_string(), columns.to_string());
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let argv = ["/bin/sh", "-c", inside::SHELL, "no43-shell", &rows, &columns, &term];
    lab.machine().agent().spawn(&argv).map_err(|error| lab.fault(phase, &error.into()))?;
    let opened = wait_event(&events, OPEN_LIMIT, |event| open_state(event).filter(|open| *open));
    if opened.is_none() {
        return Err(
            lab.fault(phase, &Trouble::Said(format!("no shell came within {} s", OPEN_LIMIT.as_secs())))
        );
    }
    let raw = RawTerminal::set();
    let ended = carry(&port, || {
        std::iter::from_fn(|| events.try_recv().ok()).any(|event| open_state(&event) == Some(false))
            || !lab.machine().is_alive()
    });
    drop(raw);
    ended.map_err(terminal)?;
    Ok(0)
}

/// Whether an event tells that the shell's port was opened or closed inside.
fn open_state(event: &no43_machine::Event) -> Option<bool> {
    // The agent has port0, the lab's own is port1.
    let ours = event.name == "VSERPORT_CHANGE" && event.text("id") == Some("port2");
    ours.then(|| event.data.get("open").and_then(serde_json::Value::as_bool)).flatten()
}

/// Bytes in both directions until Ctrl-], the end of our input and of the shell, or `over`.
fn carry(port: &UnixStream, mut over: impl FnMut() -> bool) -> io::Result<()> {
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
            stdout.write_all(&chunk[..count])?;
            stdout.flush()?;
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
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn set() -> RawTerminal {
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
