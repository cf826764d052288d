//! QMP's lines: read with a bound on their length, sorted into greeting, event and reply, never trusted.
//!
//! `qapi`'s own transport ends the connection at the first event that its schema does not know; here everything unknown is
//! kept as plain JSON.

use std::io::{self, Read};

use serde_json::Value;

/// Reads lines of at most `max` bytes. A longer one is an error, because a peer that never ends its line would otherwise
/// eat all memory.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    source: R,
    buffer: Vec<u8>,
    /// Up to here `buffer` is known to hold no line end.
    searched: usize,
    max: usize,
}

impl<R: Read> LineReader<R> {
    pub(crate) fn new(source: R, max: usize) -> Self {
        LineReader { source, buffer: Vec::new(), searched: 0, max }
    }

    /// The next line without its end; `None` at the end of the stream. Half a line at the end of the stream is dropped.
    /// An error of the source (such as a time-out) loses nothing: the next call goes on where this one stopped.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.max {
                let what = format!("a line of more than {} bytes", self.max);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            match self.source.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn source(&self) -> &R {
        &self.source
    }
}

/// One line, sorted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first line of a connection.
    Greeting(Value),
    /// Something happened.
    Event(Event),
    /// The answer to the command with this id.
    Reply { id: u64, result: Result<Value, Refusal> },
    /// Anything else; also a reply without an id, which is QEMU's answer to a line that it could not parse.
    Other(Value),
}

/// The `error` of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) class: String,
    pub(crate) description: String,
}

/// Something that QEMU reports on its own, known to `qapi` or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name of the event, such as `RESET`.
    pub name: String,
    /// Its data as they came; [`Value::Null`] if it has none.
    pub data: Value,
    /// QEMU's clock at the event, in seconds since 1970; 0 if it did not say.
    pub seconds: f64,
    /// The whole line.
    pub raw: Value,
}

impl Event {
    /// The event in `qapi`'s types, if its schema (QEMU 9.1) knows it with all its values.
    pub fn known(&self) -> Option<qapi::qmp::Event> {
        serde_json::from_value(self.raw.clone()).ok()
    }

    /// A string in the event's data.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }
}

/// Sorts one line. Only a line that is not JSON is an error.
pub(crate) fn parse(line: &[u8]) -> Result<Message, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(line)?;
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let stamp = |key| value.pointer(key).and_then(Value::as_f64).unwrap_or(0.0);
        return Ok(Message::Event(Event {
            name: name.to_owned(),
            data: value.get("data").cloned().unwrap_or(Value::Null),
            seconds: stamp("/timestamp/seconds") + stamp("/timestamp/microseconds") / 1e6,
            raw: value,
        }));
    }
    if let Some(greeting) = value.get_mut("QMP") {
        return Ok(Message::Greeting(greeting.take()));
    }
    let Some(id) = value.get("id").and_then(Value::as_u64) else { return Ok(Message::Other(value)) };
    if let Some(error) = value.get("error") {
        let text = |key| error.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        return Ok(Message::Reply {
            id,
            result: Err(Refusal { class: text("class"), description: text("desc") }),
        });
    }
    match value.get_mut("return") {
        Some(answer) => Ok(Message::Reply { id, result: Ok(answer.take()) }),
        None => Ok(Message::Other(value)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_unknown_event_is_kept() {
        let line = br#"{"timestamp": {"seconds": 5, "microseconds": 500000}, "event": "FROM_2031", "data": {"a": 1}}"#;
        let Message::Event(event) = parse(line).unwrap() else { panic!("should be an event") };
        assert_eq!((event.name.as_str(), event.seconds), ("FROM_2031", 5.5));
        assert_eq!(event.data["a"], 1);
        assert!(event.known().is_none());
    }

    #[test]
    fn a_known_event_has_its_type() {
        let line = br#"{"timestamp": {"seconds": 5, "microseconds": 0}, "event": "RESUME"}"#;
        let Message::Event(event) = parse(line).unwrap() else { panic!("should be an event") };
        assert!(matches!(event.known(), Some(qapi::qmp::Event::RESUME { .. })));
    }

    #[test]
    fn a_line_may_come_in_pieces_and_lines_together() {
        let bytes = b"one\r\ntwo\nhalf".as_slice();
        let mut reader = LineReader::new(bytes, 10);
        assert_eq!(reader.next_line().unwrap().unwrap(), b"one");
        assert_eq!(reader.next_line().unwrap().unwrap(), b"two");
        assert_eq!(reader.next_line().unwrap(), None);
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut reader = LineReader::new(io::repeat(b'x'), 100_000);
        assert_eq!(reader.next_line().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_are_sorted_without_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn json_of_any_shape_is_sorted_without_panic(
            key in "event|QMP|id|error|return|data|timestamp",
            other in "event|QMP|id|error|return|data|timestamp",
            value in "null|1|-1|1e99|\"x\"|\\[\\]|\\{\\}|\\{\"seconds\":\"x\"\\}|true",
        ) {
            let line = format!("{{\"{key}\":{value},\"{other}\":{value}}}");
            prop_assert!(parse(line.as_bytes()).is_ok());
        }

        #[test]
        fn lines_come_out_as_they_went_in(lines in proptest::collection::vec("[a-z]{0,40}", 0..20)) {
            let bytes: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
            let mut reader = LineReader::new(bytes.as_slice(), 100);
            for line in &lines {
                prop_assert_eq!(reader.next_line().unwrap().unwrap(), line.as_bytes());
            }
            prop_assert_eq!(reader.next_line().unwrap(), None);
        }
    }
}
