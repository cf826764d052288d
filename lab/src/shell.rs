//! `lab shell`: a terminal of the lab host, over a virtio-serial port.
//!
//! The port is no terminal, so `script` makes one inside. Ctrl-] leaves; the lab stays up.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use no43_machine::qmp::wait_event;
use no43_machine::terminal::{RawTerminal, carry};
use rustix::termios::tcgetwinsize;

use crate::error::{LabError, Trouble};
use crate::inside;
use crate::outer::{Lab, SHELL_PORT};

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
    let ended = carry(&port, None, || {
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
