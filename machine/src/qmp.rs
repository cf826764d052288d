//! The control connection to one QEMU: `qapi`'s command types over a transport that survives what the schema does not know.
//!
//! One thread reads; any number of threads may send. Answers find their command by id, events go to every subscriber. When
//! the connection ends, every waiting command fails with [`QmpError::Gone`] at once, so nothing waits for a dead QEMU.

mod wire;

use std::collections::HashMap;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qapi::Command;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

pub use wire::Event;
pub(crate) use wire::LineReader;
use wire::{Message, Refusal};

/// How long a command may take. QEMU answers in milliseconds; a host that swaps may need seconds.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The longest line that is believed. `query-qmp-schema` has 300 KB.
const LINE_MAX: usize = 16 << 20;

/// Events that may wait in one subscription; a subscriber that is further behind is dropped.
const EVENTS_WAITING_MAX: usize = 10_000;

/// What the first exchange is called in errors.
const GREETING: &str = "the greeting";

/// The id of the command in the first exchange; the others count from here.
const HANDSHAKE_ID: u64 = 0;

/// Why a command has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// There is nobody to connect to, or the connection could not be made.
    #[error("failed to connect to QEMU's control socket {path}: {why}")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        why: String,
    },
    /// QEMU is gone, or broke the connection.
    #[error("QEMU's control connection ended during {during}: {why}")]
    Gone {
        /// The command that was under way.
        during: String,
        /// What ended it.
        why: String,
    },
    /// QEMU is there and does not answer.
    #[error("QEMU did not answer {command} within {} s", limit.as_secs_f32())]
    TimedOut {
        /// The command.
        command: String,
        /// The limit that it had.
        limit: Duration,
    },
    /// QEMU said no.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, such as `CommandNotFound` or `GenericError`.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU's answer does not have the shape that `qapi` expects; the raw answer is kept.
    #[error("failed to read QEMU's answer to {command}: {why} (answer: {raw})")]
    Decode {
        /// The command.
        command: String,
        /// What is wrong with it.
        why: String,
        /// The answer as it came.
        raw: Box<Value>,
    },
}

impl QmpError {
    /// QEMU said no, in a class of errors or for a reason of its own; the connection is fine.
    pub fn is_refusal(&self) -> bool {
        matches!(self, QmpError::Refused { .. })
    }
}

/// A connection in command mode. Clones share it; it is closed when the last clone goes.
#[derive(Debug, Clone)]
pub struct Qmp {
    handle: Arc<Handle>,
}

/// Closes the connection when the last [`Qmp`] goes, which also ends the reader thread.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    version: Value,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = lock(&self.shared.writer).shutdown(Shutdown::Both);
    }
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<UnixStream>,
    next_id: AtomicU64,
    resets: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, SyncSender<Result<Value, Refusal>>>,
    subscribers: Vec<SyncSender<Event>>,
    /// The last `SHUTDOWN` event's data: why QEMU is about to end.
    shutdown: Option<Value>,
    /// Why the connection has ended.
    gone: Option<String>,
}

/// A poisoned lock means that another thread panicked between two statements that cannot leave half a state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Qmp {
    /// Connects to a QEMU that listens on `socket`. `limit` covers the connection and the greeting: QEMU serves one client
    /// at a time, so the greeting of a second one never comes.
    ///
    /// # Errors
    /// [`QmpError::Connect`], or one of [`Qmp::open`].
    pub fn connect(socket: &Path, limit: Duration) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(socket).map_err(|error| QmpError::Connect {
            path: socket.display().to_string(),
            why: error.to_string(),
        })?;
        Qmp::open(stream, limit)
    }

    /// Waits for the greeting on a connected stream and enters command mode.
    ///
    /// # Errors
    /// [`QmpError::TimedOut`] if QEMU is not there within `limit`, [`QmpError::Gone`] if the peer hangs up.
    pub fn open(stream: UnixStream, limit: Duration) -> Result<Qmp, QmpError> {
        let gone = |error: io::Error| QmpError::Gone { during: GREETING.into(), why: error.to_string() };
        let mut reader = LineReader::new(stream.try_clone().map_err(gone)?, LINE_MAX);
        stream.set_write_timeout(Some(COMMAND_LIMIT)).map_err(gone)?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(stream),
            next_id: AtomicU64::new(HANDSHAKE_ID + 1),
            resets: AtomicU64::new(0),
            state: Mutex::default(),
        });
        let version = shared.shake_hands(&mut reader, limit)?;
        reader.source().set_read_timeout(None).map_err(gone)?;
        let for_reader = Arc::clone(&shared);
        thread::Builder::new().name("qmp".into()).spawn(move || for_reader.read_all(reader)).map_err(gone)?;
        Ok(Qmp { handle: Arc::new(Handle { shared, version }) })
    }

    /// QEMU's version as `(major, minor, micro)`; zeros if it did not say.
    pub fn version(&self) -> (u64, u64, u64) {
        let number = |key| self.handle.version.pointer(key).and_then(Value::as_u64).unwrap_or(0);
        (number("/qemu/major"), number("/qemu/minor"), number("/qemu/micro"))
    }

    /// Executes a command of `qapi`'s schema.
    ///
    /// # Errors
    /// Every variant of [`QmpError`] but [`QmpError::Connect`].
    pub fn execute<C: Command>(&self, command: &C) -> Result<C::Ok, QmpError> {
        let decode = |why: serde_json::Error, raw| QmpError::Decode {
            command: C::NAME.into(),
            why: why.to_string(),
            raw: Box::new(raw),
        };
        let arguments = serde_json::to_value(command).map_err(|error| decode(error, Value::Null))?;
        let answer = self.raw(C::NAME, arguments)?;
        serde_json::from_value(answer.clone()).map_err(|error| decode(error, answer))
    }

    /// Executes any command by name. `arguments` is an object, or [`Value::Null`] for none.
    ///
    /// # Errors
    /// Every variant of [`QmpError`] but [`QmpError::Connect`] and [`QmpError::Decode`].
    pub fn raw(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.raw_within(command, arguments, COMMAND_LIMIT)
    }

    /// [`Qmp::raw`] with a limit of one's own.
    ///
    /// # Errors
    /// As [`Qmp::raw`].
    pub fn raw_within(&self, command: &str, arguments: Value, limit: Duration) -> Result<Value, QmpError> {
        self.handle.shared.round_trip(command, arguments, None, limit)
    }

    /// Hands QEMU a copy of an open file under `name` (`getfd`); later commands say `fd:NAME` or `"fdname": NAME`.
    ///
    /// # Errors
    /// As [`Qmp::raw`].
    pub fn send_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.raw_with_fd("getfd", json!({ "fdname": name }), fd).map(drop)
    }

    /// [`Qmp::raw`] for the commands that take a copy of an open file with them (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// As [`Qmp::raw`].
    pub fn raw_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.handle.shared.round_trip(command, arguments, Some(fd), COMMAND_LIMIT)
    }

    /// Every event from now on. The channel disconnects when QEMU is gone (or when 10 000 events wait unread).
    pub fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = mpsc::sync_channel(EVENTS_WAITING_MAX);
        let mut state = lock(&self.handle.shared.state);
        if state.gone.is_none() {
            state.subscribers.push(sender);
        }
        receiver
    }

    /// How often the guest has been reset since this connection began. An agent that was in sync before is not any more.
    pub fn resets(&self) -> u64 {
        self.handle.shared.resets.load(Ordering::Acquire)
    }

    /// Why the connection has ended; `None` while it lives.
    pub fn gone(&self) -> Option<String> {
        lock(&self.handle.shared.state).gone.clone()
    }

    /// The data of the last `SHUTDOWN` event: `{"guest": true, "reason": "guest-shutdown"}`.
    pub fn shutdown_event(&self) -> Option<Value> {
        lock(&self.handle.shared.state).shutdown.clone()
    }
}

/// Waits until `wanted` picks an event. `None` when the limit is over or QEMU is gone.
pub fn wait_event<T>(
    events: &Receiver<Event>,
    limit: Duration,
    mut wanted: impl FnMut(&Event) -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let event = events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        if let Some(found) = wanted(&event) {
            return Some(found);
        }
    }
}

impl Shared {
    /// Reads the greeting and enters command mode, on the caller's thread. The command is sent first: it waits in the
    /// socket until QEMU is up, which saves a round trip, and on a busy host two waits for a CPU.
    fn shake_hands(&self, reader: &mut LineReader<UnixStream>, limit: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        let gone = |why: String| QmpError::Gone { during: GREETING.into(), why };
        let timed_out = || QmpError::TimedOut { command: GREETING.into(), limit };
        let command = json!({ "execute": "qmp_capabilities", "id": HANDSHAKE_ID });
        self.send(&format!("{command}\n"), None).map_err(|error| gone(error.to_string()))?;
        let mut version = None;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            // A time-out of zero would mean none at all.
            let set = reader.source().set_read_timeout(Some(rest.max(Duration::from_millis(1))));
            set.map_err(|error| gone(error.to_string()))?;
            let line = match reader.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Err(gone("QEMU closed it".into())),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(timed_out());
                }
                Err(error) => return Err(gone(error.to_string())),
            };
            let message = wire::parse(&line).map_err(|error| gone(not_json(&error)))?;
            match (message, version.take()) {
                (Message::Greeting(mut greeting), _) => {
                    version = Some(greeting.get_mut("version").map_or(Value::Null, Value::take));
                }
                (Message::Reply { id: HANDSHAKE_ID, result: Ok(_) }, Some(version)) => return Ok(version),
                (Message::Reply { id: HANDSHAKE_ID, result: Err(Refusal { class, description }) }, _) => {
                    return Err(QmpError::Refused { command: GREETING.into(), class, description });
                }
                (other, known) => {
                    version = known;
                    self.deliver(other);
                }
            }
            if rest.is_zero() {
                return Err(timed_out());
            }
        }
    }

    fn round_trip(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let gone = |why: String| QmpError::Gone { during: command.into(), why };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::sync_channel(1);
        {
            let mut state = lock(&self.state);
            if let Some(why) = &state.gone {
                return Err(gone(why.clone()));
            }
            state.waiting.insert(id, sender);
        }
        let mut message = json!({ "execute": command, "id": id });
        if arguments.as_object().is_some_and(|object| !object.is_empty()) {
            message["arguments"] = arguments;
        }
        if let Err(error) = self.send(&format!("{message}\n"), fd) {
            lock(&self.state).waiting.remove(&id);
            return Err(gone(error.to_string()));
        }
        match receiver.recv_timeout(limit) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(QmpError::Refused {
                command: command.into(),
                class: refusal.class,
                description: refusal.description,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone(self.why_gone())),
            Err(RecvTimeoutError::Timeout) => {
                lock(&self.state).waiting.remove(&id);
                Err(QmpError::TimedOut { command: command.into(), limit })
            }
        }
    }

    /// The descriptor travels with the first bytes of the line, where QEMU looks for it.
    fn send(&self, line: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut writer = lock(&self.writer);
        let mut rest = line.as_bytes();
        if let Some(fd) = fd {
            let fds = [fd];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let sent = sendmsg(writer.as_fd(), &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?;
            rest = &rest[sent..];
        }
        writer.write_all(rest)
    }

    fn read_all(&self, mut reader: LineReader<UnixStream>) {
        let why = loop {
            match reader.next_line() {
                Ok(Some(line)) => match wire::parse(&line) {
                    Ok(message) => self.deliver(message),
                    Err(error) => break not_json(&error),
                },
                Ok(None) => break "QEMU closed it".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        let _ = reader.source().shutdown(Shutdown::Both);
        let mut state = lock(&self.state);
        state.gone = Some(why);
        // Dropping the senders wakes everybody who waits.
        state.waiting.clear();
        state.subscribers.clear();
    }

    fn deliver(&self, message: Message) {
        match message {
            Message::Event(event) => self.publish(&event),
            Message::Reply { id, result } => {
                if let Some(waiting) = lock(&self.state).waiting.remove(&id) {
                    let _ = waiting.try_send(result);
                }
            }
            Message::Greeting(_) | Message::Other(_) => {}
        }
    }

    fn publish(&self, event: &Event) {
        if event.name == "RESET" {
            self.resets.fetch_add(1, Ordering::AcqRel);
        }
        let mut state = lock(&self.state);
        if event.name == "SHUTDOWN" {
            state.shutdown = Some(event.data.clone());
        }
        state.subscribers.retain(|subscriber| match subscriber.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        });
    }

    fn why_gone(&self) -> String {
        lock(&self.state).gone.clone().unwrap_or_else(|| "the connection was closed".into())
    }
}

fn not_json(error: &serde_json::Error) -> String {
    format!("it sent something that is not JSON: {error}")
}

#[cfg(test)]
mod tests;
