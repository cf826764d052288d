//! Running: machines that outlive the command that started them, each with a supervisor of its own.
//!
//! The supervisor is this program again (`no43 supervise`), in a session of its own. It holds the instance, the lease and
//! QEMU's control connection, and gives the cards back when the guest ends. Killed, it leaves the guest running; the next
//! command that changes something starts another one, which takes the machine over by process, start time and socket.
//!
//! ```text
//! STATE/m/NAME/run.json       who supervises what, with which lease
//! STATE/m/NAME/control.sock   one JSON line asks, lines answer (see `event`)
//! STATE/m/NAME/machine.json   QEMU's process (written by the machine crate), with its sockets beside it
//! STATE/m/NAME/events.jsonl   what happened
//! ```

mod autostart;
mod beside;
mod client;
mod companions;
mod control;
mod ending;
mod event;
pub mod first_start;
mod host;
mod hub;
mod keep_input;
mod kept_disks;
mod logind;
mod note;
pub mod secrets;
mod shares;
mod spec;
mod supervisor;
pub mod usb;
mod watch;

pub use autostart::Autostart;
pub use client::{Client, ClientError};
pub use event::{Answer, Ask, Happened, Line};
pub use host::Refusal;
pub use note::{Adopted, Left, Row, RunNote, Runs, Stage};
pub use spec::{SHELL_PORT, console_socket, shell_socket, vnc_socket};
pub(crate) use spec::{serial_log, tpm_socket};
pub use supervisor::{Launch, Request, StartRequest, Supervisor, supervise};
