//! A scripted agent on a socket: what only a hostile, slow or restarted guest does.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use super::*;

const SECONDS: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

/// Serves connections one after the other with `serve`, each with what it reads split at line ends.
pub(super) fn agent_with(
    connections: usize,
    mut serve: impl FnMut(&mut Guest) + Send + 'static,
) -> (Agent, tempfile::TempDir, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ga.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            serve(&mut Guest { stream, rest: Vec::new() });
        }
    });
    (Agent::on_socket(socket), dir, server)
}

pub(super) struct Guest {
    stream: UnixStream,
    rest: Vec<u8>,
}

impl Guest {
    /// The next request; `None` when we hung up.
    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).filter(|&byte| byte != 0xff).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
            }
        }
    }

    pub(super) fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Answers a sync as qemu-ga does: first an error about the 0xFF itself.
    fn sync(&mut self, request: &Value) {
        self.say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray\"}}\n");
        let id = &request["arguments"]["id"];
        self.say(&[b"\xff".as_slice(), format!("{{\"return\": {id}}}\n").as_bytes()].concat());
    }

    /// Gets in sync and returns the first other request.
    pub(super) fn synced(&mut self) -> Option<Value> {
        loop {
            let request = self.next()?;
            if request["execute"] != "guest-sync-delimited" {
                return Some(request);
            }
            self.sync(&request);
        }
    }
}

#[test]
fn leftovers_of_an_earlier_client_are_skipped() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        guest.say(b"{\"return\": \"for somebody else\"}\n{\"retu");
        while guest.synced().is_some() {
            guest.say(b"{\"return\": {}}\n");
        }
    });
    agent.ping(SECONDS).unwrap();
    agent.ping(SECONDS).unwrap();
}

#[test]
fn a_late_answer_is_not_the_next_ones() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        let first = guest.synced().unwrap();
        assert_eq!(first["execute"], "guest-info");
        thread::sleep(SHORT * 2);
        guest.say(b"{\"return\": \"late\"}\n");
        while guest.synced().is_some() {
            guest.say(b"{\"return\": \"mine\"}\n");
        }
    });
    let error = agent.raw("guest-info", &Value::Null, SHORT).unwrap_err();
    assert!(matches!(error, AgentError::TimedOut { .. }), "{error}");
    assert_eq!(agent.raw("guest-ping", &Value::Null, SECONDS).unwrap(), "mine");
}

#[test]
fn an_agent_that_starts_late_is_waited_for() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        thread::sleep(Duration::from_millis(1500));
        while guest.synced().is_some() {
            guest.say(b"{\"return\": {}}\n");
        }
    });
    let mut told = Vec::new();
    let took = agent.wait_ready(Duration::from_secs(20), |waited| told.push(waited)).unwrap();
    assert!(took >= Duration::from_millis(1400), "{took:?}");
    assert_eq!(told.len(), 1);
}

#[test]
fn a_broken_connection_is_made_again() {
    let (agent, _dir, _server) = agent_with(2, |guest| {
        guest.synced().unwrap();
        guest.say(b"{\"return\": {}}\n");
    });
    agent.ping(SECONDS).unwrap();
    let error = agent.ping(SECONDS).unwrap_err();
    assert!(matches!(error, AgentError::Connection { .. }), "{error}");
    agent.ping(SECONDS).unwrap();
}

#[test]
fn an_endless_line_ends() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        guest.synced();
        let junk = vec![b'x'; 1 << 20];
        while guest.stream.write_all(&junk).is_ok() {}
    });
    let error = agent.ping(Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, AgentError::Garbage { .. }), "{error}");
}

#[test]
fn a_flood_instead_of_a_sync_ends() {
    let (agent, _dir, _server) = agent_with(1, |guest| while guest.stream.write_all(b"{}\n").is_ok() {});
    let error = agent.ping(Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, AgentError::Garbage { .. }), "{error}");
}

#[test]
fn answers_of_the_wrong_shape_are_errors() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        while let Some(request) = guest.synced() {
            match request["execute"].as_str() {
                Some("guest-exec") => guest.say(b"{\"return\": {\"pid\": \"seven\"}}\n"),
                Some("guest-file-open") => guest.say(b"{\"return\": 1}\n"),
                Some("guest-file-write") => guest.say(b"{\"return\": {\"count\": 4711, \"eof\": false}}\n"),
                // More than was asked for.
                Some("guest-file-read") => {
                    guest.say(
                        b"{\"return\": {\"count\": 9, \"eof\": false, \"buf-b64\": \"YWJjZGVmZ2hpamts\"}}\n",
                    );
                }
                Some("guest-ping") => guest.say(b"[]\n"),
                _ => guest.say(b"{\"return\": {}}\n"),
            }
        }
    });
    let limits = ExecLimits::within(SECONDS);
    assert!(matches!(agent.exec(&["x"], &limits), Err(AgentError::Garbage { .. })));
    assert!(matches!(agent.exec(&[], &limits), Err(AgentError::Garbage { .. })));
    assert!(matches!(agent.write_file("x", b"abc"), Err(AgentError::Garbage { .. })));
    assert!(matches!(agent.read_file("x", 3), Err(AgentError::Garbage { .. })));
}

#[test]
fn a_stream_of_16_mib_counts_as_cut_whatever_the_agent_says() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        while let Some(request) = guest.synced() {
            if request["execute"] == "guest-exec" {
                assert_eq!(request["arguments"]["capture-output"], true);
                guest.say(b"{\"return\": {\"pid\": 7}}\n");
            } else {
                // 16 MiB of NUL bytes, and agent 10.0's wrong word for it.
                let data = "AAAA".repeat(exec::STREAM_MAX / 3) + "AA==";
                let answer =
                    json!({ "exited": true, "exitcode": 0, "out-data": data, "out-truncated": false });
                guest.say(format!("{{\"return\": {answer}}}\n").as_bytes());
            }
        }
    });
    let output = agent.exec(&["x"], &ExecLimits::within(Duration::from_secs(60))).unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (exec::STREAM_MAX, true));
}

#[test]
fn a_shutdown_has_no_answer_and_a_refused_one_has() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        while let Some(request) = guest.synced() {
            if request["execute"] == "guest-ping" {
                guest.say(b"{\"return\": {}}\n");
            } else if request["arguments"]["mode"] == "halt" {
                guest.say(b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"blocked\"}}\n");
            }
        }
    });
    agent.shutdown(ShutdownMode::PowerDown).unwrap();
    let error = agent.shutdown(ShutdownMode::Halt).unwrap_err().to_string();
    assert!(error.contains("blocked"), "{error}");
}

#[test]
fn a_missing_socket_is_named_by_the_command() {
    let error = Agent::on_socket("/nonexistent/ga.sock").ping(SHORT).unwrap_err().to_string();
    assert!(error.contains("guest-ping"), "{error}");
}

#[test]
fn a_guest_without_hwclock_gets_its_time_by_date() {
    let (agent, _dir, _server) = agent_with(1, |guest| {
        while let Some(request) = guest.synced() {
            match request["execute"].as_str() {
                Some("guest-set-time") => {
                    guest.say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}}\n");
                }
                Some("guest-exec") => {
                    let arguments = &request["arguments"];
                    assert_eq!((&arguments["path"], &arguments["arg"][1]), (&json!("date"), &json!("-s")));
                    guest.say(b"{\"return\": {\"pid\": 7}}\n");
                }
                _ => guest.say(b"{\"return\": {\"exited\": true, \"exitcode\": 0}}\n"),
            }
        }
    });
    agent.set_time().unwrap();
}
