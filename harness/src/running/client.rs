//! The other end of a supervisor's socket, and the start of a supervisor.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::event::{Answer, Ask, Happened, Line};
use super::host::Refusal;
use super::note::{self, Runs};
use super::supervisor::{Launch, Request};
use crate::exit_codes;

/// A supervisor answers at once, except for what QEMU has to do first.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// Why a supervisor could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It does not listen.
    #[error("'{name}' is not running (no43 ps shows what is)")]
    NotRunning {
        /// The machine's name.
        name: String,
    },
    /// The connection ended.
    #[error("the no43 that watches '{name}' does not answer: {why}")]
    Lost {
        /// The machine's name.
        name: String,
        /// What the system said.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to one supervisor.
#[derive(Debug)]
pub struct Client {
    name: String,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the supervisor of `name`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`].
    pub fn connect(runs: &Runs, name: &str) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(runs.control(name));
        let stream = stream.map_err(|_| ClientError::NotRunning { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), stream: BufReader::new(stream) })
    }

    fn lost(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Lost { name: self.name.clone(), why: why.to_string() }
    }

    fn send(&mut self, ask: &Ask) -> Result<(), ClientError> {
        let mut text = serde_json::to_vec(ask).map_err(|error| self.lost(error))?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text).map_err(|error| self.lost(error))
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&mut self, ask: &Ask) -> Result<(), ClientError> {
        self.send(ask)?;
        let _ = self.stream.get_ref().set_read_timeout(Some(ANSWER_LIMIT));
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|error| self.lost(error))?;
        match serde_json::from_str(&line) {
            Ok(Answer::Ok) => Ok(()),
            Ok(Answer::No(why)) => Err(ClientError::Refused(why)),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Begins to follow; [`Client::next`] then gives one event after the other: those that come, with `past` also all that
    /// were.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub fn follow(mut self, past: bool) -> Result<Self, ClientError> {
        self.send(&Ask::Follow { past })?;
        match self.next(ANSWER_LIMIT)? {
            Some(Line { what: Happened::Followed, .. }) => Ok(self),
            other => Err(self.lost(format!("it said {other:?}"))),
        }
    }

    /// The next event. `Ok(None)` when `limit` is over before one comes.
    ///
    /// # Errors
    /// [`ClientError::Lost`] when the supervisor is gone.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Line>, ClientError> {
        // a time-out of zero would mean none at all
        let _ = self.stream.get_ref().set_read_timeout(Some(limit.max(Duration::from_millis(1))));
        // a line that came in part stays in the buffer: events are short, and written at once
        match self.stream.fill_buf() {
            Ok([]) => return Err(self.lost("it has ended")),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(self.lost(error)),
        }
        let _ = self.stream.get_ref().set_read_timeout(Some(ANSWER_LIMIT));
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|error| self.lost(error))?;
        serde_json::from_str(&line).map(Some).map_err(|error| self.lost(error))
    }
}

impl Launch<'_> {
    /// Starts a supervisor and waits until it listens, which is before anything on the host is changed.
    ///
    /// # Errors
    /// What it said instead.
    pub fn launch(&self, request: &Request, name: &str) -> Result<Client, Refusal> {
        let setup = |what: &str, error: &dyn std::fmt::Display| {
            Refusal::new(exit_codes::HOST_SETUP, format!("failed to {what}: {error}"))
        };
        // without a name, so that nothing of it is left whoever is killed
        let mut errors = tempfile::tempfile().map_err(|error| setup("make a file for errors", &error))?;
        let file = errors.try_clone().map_err(|error| setup("make a file for errors", &error))?;
        let mut child = note::spawn(self.no43, file)
            .map_err(|error| setup(&format!("start {}", self.no43.display()), &error))?;
        let text = serde_json::to_vec(request).map_err(|error| setup("ask for the machine", &error))?;
        // dropped at once: the end of the request is the end of its input
        let sent = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&text));
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = BufReader::new(stdout.take(1 << 20)).read_line(&mut said);
        }
        // it is in a session of its own, and init's child when we are gone; until then somebody has to take its end
        std::thread::spawn(move || child.wait());
        match serde_json::from_str::<Result<(), Refusal>>(&said) {
            Ok(Ok(())) => Client::connect(self.runs, name)
                .map_err(|error| setup("reach the machine's supervisor", &error)),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                let mut words = String::new();
                let _ = errors.rewind().and_then(|()| errors.read_to_string(&mut words));
                let words = crate::words::clean_to(&words, 1000);
                let sent = sent.err().map(|error| format!(" ({error})")).unwrap_or_default();
                Err(Refusal::new(
                    exit_codes::FAILED_HARNESS,
                    format!("the machine's supervisor died{sent}: {words}"),
                ))
            }
        }
    }
}
