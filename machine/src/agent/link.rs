//! The agent's byte stream: delimited synchronisation, bounded lines, and an eye on the machine while it waits.
//!
//! The agent has no ids in its answers, so the only way to know which answer is whose is to be in sync: 0xFF makes the
//! agent's parser start afresh (it answers that byte with an error line on a fresh connection), `guest-sync-delimited` is
//! answered with 0xFF and our random id. After every time-out and every reset of the guest this has to be done again.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::AgentError;
use crate::qmp::{LineReader, Qmp};

/// Two streams of 16 MiB in base64, and room for the rest: the largest honest answer.
const LINE_MAX: usize = 48 << 20;

/// How often a wait looks whether the machine is still there.
const SLICE: Duration = Duration::from_millis(50);

/// Starts a message afresh, on both sides.
const DELIMITER: u8 = 0xff;

/// Lines that may come before the answer to a sync: leftovers of earlier clients.
const LEFTOVERS_MAX: usize = 10_000;

/// Why an answer did not come.
#[derive(Debug)]
pub(super) enum LinkError {
    TimedOut,
    MachineGone(String),
    Reset,
    Io(io::Error),
    /// The answer is not what an agent says.
    Garbage(String),
    Refused {
        class: String,
        description: String,
    },
}

impl LinkError {
    pub(super) fn about(self, command: &str, limit: Duration) -> AgentError {
        let command = command.to_owned();
        match self {
            LinkError::TimedOut => AgentError::TimedOut { command, limit },
            LinkError::MachineGone(why) => AgentError::MachineGone { command, why },
            LinkError::Reset => AgentError::Reset { command },
            LinkError::Io(error) => AgentError::Connection { command, why: error.to_string() },
            LinkError::Garbage(what) => AgentError::Garbage { command, what },
            LinkError::Refused { class, description } => AgentError::Refused { command, class, description },
        }
    }
}

/// One connection to an agent.
#[derive(Debug)]
pub(super) struct Link {
    reader: LineReader<UnixStream>,
    writer: UnixStream,
    qmp: Option<Qmp>,
    /// The number of resets at which the last sync was made; `None` while out of sync.
    synced_at: Option<u64>,
}

impl Link {
    pub(super) fn open(socket: &Path, qmp: Option<Qmp>) -> io::Result<Link> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(SLICE))?;
        writer.set_write_timeout(Some(SLICE))?;
        let reader = LineReader::new(writer.try_clone()?, LINE_MAX);
        Ok(Link { reader, writer, qmp, synced_at: None })
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced_at == Some(self.resets())
    }

    /// Sends one command and waits for its answer. Only a refusal leaves the link in sync.
    pub(super) fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        deadline: Instant,
    ) -> Result<Value, LinkError> {
        let synced = self.synced_at.take();
        let mut message = json!({ "execute": command });
        if arguments.as_object().is_some_and(|object| !object.is_empty()) {
            message["arguments"] = arguments.clone();
        }
        let started_at = self.resets();
        self.send(format!("{message}\n").as_bytes(), started_at, deadline)?;
        let line = self.line(started_at, deadline)?;
        let mut answer: Value =
            serde_json::from_slice(&line).map_err(|error| LinkError::Garbage(error.to_string()))?;
        if let Some(error) = answer.get("error") {
            self.synced_at = synced;
            let text = |key| error.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
            return Err(LinkError::Refused { class: text("class"), description: text("desc") });
        }
        match answer.get_mut("return") {
            Some(value) => {
                self.synced_at = synced;
                Ok(value.take())
            }
            None => Err(LinkError::Garbage("an answer without 'return'".into())),
        }
    }

    /// Gets in sync. The request is sent again every `again`, because the first one may go to an agent that dies with a
    /// reboot. An answer to any of the requests shows that somebody is there; in sync is who has the last one's.
    pub(super) fn sync(
        &mut self,
        again: Duration,
        deadline: Instant,
        tick: &mut dyn FnMut(),
    ) -> Result<(), LinkError> {
        self.synced_at = None;
        let started_at = self.resets();
        let mut ids = Vec::new();
        let mut heard = false;
        let mut leftovers = 0;
        loop {
            let id = random_id();
            ids.push(id);
            let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
            let mut bytes = vec![DELIMITER];
            bytes.extend_from_slice(format!("{request}\n").as_bytes());
            self.send(&bytes, started_at, deadline)?;
            let mut retry = (Instant::now() + again).min(deadline);
            loop {
                if heard {
                    retry = deadline;
                }
                match self.line_with(started_at, retry, tick) {
                    Ok(line) if answers_sync(&line, &[id]) => {
                        self.synced_at = Some(started_at);
                        return Ok(());
                    }
                    Ok(line) => {
                        heard |= answers_sync(&line, &ids);
                        leftovers += 1;
                    }
                    Err(LinkError::TimedOut) if Instant::now() < deadline => break,
                    Err(error) => return Err(error),
                }
                if leftovers > LEFTOVERS_MAX {
                    return Err(LinkError::Garbage("no end of lines that nobody asked for".into()));
                }
            }
        }
    }

    fn resets(&self) -> u64 {
        self.qmp.as_ref().map_or(0, Qmp::resets)
    }

    /// Why waiting is over, if it is.
    fn interrupted(&self, started_at: u64, deadline: Instant) -> Option<LinkError> {
        if let Some(why) = self.qmp.as_ref().and_then(Qmp::gone) {
            return Some(LinkError::MachineGone(why));
        }
        if self.resets() != started_at {
            return Some(LinkError::Reset);
        }
        (Instant::now() >= deadline).then_some(LinkError::TimedOut)
    }

    fn line(&mut self, started_at: u64, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        self.line_with(started_at, deadline, &mut || {})
    }

    /// The next line; `tick` is called at every look around.
    fn line_with(
        &mut self,
        started_at: u64,
        deadline: Instant,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, LinkError> {
        loop {
            tick();
            match self.reader.next_line() {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => return Err(self.hung_up()),
                Err(error) if is_slice_over(&error) => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return Err(LinkError::Garbage(error.to_string()));
                }
                Err(error) => return Err(LinkError::Io(error)),
            }
            if let Some(error) = self.interrupted(started_at, deadline) {
                return Err(error);
            }
        }
    }

    /// A guest that does not read fills the socket, so sending is a wait too.
    fn send(&mut self, mut bytes: &[u8], started_at: u64, deadline: Instant) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            match self.writer.write(bytes) {
                Ok(0) => return Err(self.hung_up()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_slice_over(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LinkError::Io(error)),
            }
            if !bytes.is_empty()
                && let Some(error) = self.interrupted(started_at, deadline)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The connection's end is usually the machine's end, which QMP reports a moment later and with a reason.
    fn hung_up(&self) -> LinkError {
        let deadline = Instant::now() + Duration::from_millis(200);
        while let Some(qmp) = &self.qmp
            && Instant::now() < deadline
        {
            if let Some(why) = qmp.gone() {
                return LinkError::MachineGone(why);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        LinkError::Io(ErrorKind::UnexpectedEof.into())
    }
}

fn is_slice_over(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// An answer counts from its last delimiter on: what is before it belongs to somebody else.
fn answers_sync(line: &[u8], ids: &[i64]) -> bool {
    let Some(start) = line.iter().rposition(|&byte| byte == DELIMITER) else { return false };
    let answer: Option<Value> = serde_json::from_slice(&line[start + 1..]).ok();
    let id = answer.as_ref().and_then(|answer| answer.get("return")).and_then(Value::as_i64);
    id.is_some_and(|id| ids.contains(&id))
}

/// Positive and below 2^53, so that no JSON reader on the way rounds it. The standard library's hasher is seeded by the
/// system's random numbers; that is all that is needed to tell clients apart.
fn random_id() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let number = RandomState::new().hash_one(now.as_nanos());
    i64::try_from(number >> 11).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_delimited_answer_with_our_id_counts() {
        assert!(answers_sync(b"\xff{\"return\": 7}", &[7]));
        assert!(answers_sync(b"{\"return\": {}}\xff{\"return\": 7}", &[7]));
        assert!(!answers_sync(b"{\"return\": 7}", &[7]));
        assert!(!answers_sync(b"\xff{\"return\": 8}", &[7]));
        assert!(!answers_sync(b"\xff{\"error\": {\"class\": \"GenericError\"}}", &[7]));
    }

    proptest! {
        #[test]
        fn any_line_is_judged_without_panic(line: Vec<u8>) {
            prop_assert!(!answers_sync(&line, &[-1]));
        }
    }
}
