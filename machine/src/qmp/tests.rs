//! A scripted QEMU on one end of a socket pair.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use super::*;

const SHORT: Duration = Duration::from_millis(200);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob", "x"]}}"#;

/// Answers each command with the lines of the next step, `ID` replaced by the command's id; then hangs up.
fn scripted(steps: &'static [&'static [&'static str]]) -> (UnixStream, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut writer = theirs.try_clone().unwrap();
        let mut lines = BufReader::new(theirs).lines();
        let mut asked = Vec::new();
        writeln!(writer, "{GREETING}").unwrap();
        let capabilities: &[&str] = &[r#"{"return": {}, "id": ID}"#];
        for step in std::iter::once(&capabilities).chain(steps) {
            let Some(Ok(line)) = lines.next() else { break };
            let command: Value = serde_json::from_str(&line).unwrap();
            for answer in *step {
                writeln!(writer, "{}", answer.replace("ID", &command["id"].to_string())).unwrap();
            }
            asked.push(command);
        }
        asked
    });
    (ours, server)
}

fn open(steps: &'static [&'static [&'static str]]) -> (Qmp, JoinHandle<Vec<Value>>) {
    let (stream, server) = scripted(steps);
    (Qmp::open(stream, Duration::from_secs(5)).unwrap(), server)
}

#[test]
fn what_qapi_does_not_know_disturbs_nobody() {
    let (qmp, server) = open(&[&[
        r#"{"event": "FROM_2031", "data": {"x": [1]}, "timestamp": {"seconds": 1, "microseconds": 0}}"#,
        r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "new-reason"}, "timestamp": {"seconds": 1}}"#,
        r#"{"return": "nobody asked", "id": 4711}"#,
        r#"{"error": {"class": "GenericError", "desc": "no id"}}"#,
        r#"[1, 2]"#,
        r#"{"return": {"status": "running", "running": true, "extra": 1}, "id": ID}"#,
    ]]);
    let events = qmp.subscribe();
    assert!(qmp.execute(&qapi::qmp::query_status {}).unwrap().running);
    assert_eq!(events.recv().unwrap().name, "FROM_2031");
    let shutdown = events.recv().unwrap();
    assert_eq!((shutdown.text("reason"), shutdown.known().is_none()), (Some("new-reason"), true));
    assert_eq!(qmp.shutdown_event().unwrap()["reason"], "new-reason");
    assert_eq!(qmp.version(), (10, 0, 2));
    let asked = server.join().unwrap();
    assert_eq!(
        (&asked[0]["execute"], &asked[1]["execute"]),
        (&json!("qmp_capabilities"), &json!("query-status"))
    );
}

#[test]
fn an_unknown_value_spoils_only_its_own_answer() {
    let (qmp, _server) = open(&[
        &[r#"{"return": {"status": "dreaming", "running": true}, "id": ID}"#],
        &[r#"{"return": {"status": "paused", "running": false}, "id": ID}"#],
    ]);
    let error = qmp.execute(&qapi::qmp::query_status {}).unwrap_err();
    assert!(matches!(&error, QmpError::Decode { raw, .. } if raw["status"] == "dreaming"), "{error}");
    assert!(!qmp.execute(&qapi::qmp::query_status {}).unwrap().running);
}

#[test]
fn answers_find_their_commands_in_any_order() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut writer = theirs.try_clone().unwrap();
        let mut lines = BufReader::new(theirs).lines();
        let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
        writeln!(writer, "{GREETING}").unwrap();
        writeln!(writer, "{}", json!({ "return": {}, "id": next()["id"] })).unwrap();
        let (one, two) = (next(), next());
        for command in [two, one] {
            writeln!(writer, "{}", json!({ "return": command["execute"], "id": command["id"] })).unwrap();
        }
    });
    let qmp = Qmp::open(ours, Duration::from_secs(5)).unwrap();
    thread::scope(|scope| {
        for name in ["first", "second"] {
            let qmp = qmp.clone();
            scope.spawn(move || assert_eq!(qmp.raw(name, Value::Null).unwrap(), name));
        }
    });
    server.join().unwrap();
}

#[test]
fn a_refusal_is_an_answer() {
    let (qmp, _server) = open(&[
        &[r#"{"error": {"class": "DeviceNotFound", "desc": "no gpu0"}, "id": ID}"#],
        &[r#"{"return": {}, "id": ID}"#],
    ]);
    let error = qmp.raw("device_del", json!({ "id": "gpu0" })).unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused device_del: no gpu0 (DeviceNotFound)");
    qmp.raw("cont", Value::Null).unwrap();
}

#[test]
fn silence_has_a_limit_and_a_hang_up_has_none() {
    let (qmp, _server) = open(&[&[], &[]]);
    let error = qmp.raw_within("stop", Value::Null, SHORT).unwrap_err();
    assert!(matches!(error, QmpError::TimedOut { .. }), "{error}");
    let events = qmp.subscribe();
    let began = Instant::now();
    let error = qmp.raw_within("stop", Value::Null, Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, QmpError::Gone { .. }) && began.elapsed() < Duration::from_secs(5), "{error}");
    assert!(events.recv().is_err());
    assert!(qmp.subscribe().recv().is_err());
    assert!(matches!(qmp.raw("cont", Value::Null), Err(QmpError::Gone { .. })));
}

#[test]
fn garbage_ends_the_connection_with_a_reason() {
    let (qmp, _server) = open(&[&["this is not JSON"]]);
    let error = qmp.raw("stop", Value::Null).unwrap_err().to_string();
    assert!(error.contains("not JSON"), "{error}");
}

#[test]
fn a_peer_that_does_not_greet_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(Qmp::open(ours, SHORT), Err(QmpError::TimedOut { .. })));
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Qmp::open(ours, SHORT), Err(QmpError::Gone { .. })));
    let error = Qmp::connect(Path::new("/nonexistent/qmp.sock"), SHORT).unwrap_err();
    assert!(matches!(&error, QmpError::Connect { .. }), "{error}");
}

#[test]
fn a_descriptor_travels_with_its_line() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Read, Seek};

    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut writer = theirs.try_clone().unwrap();
        writeln!(writer, "{GREETING}").unwrap();
        let mut buffer = [0; 4096];
        let count = (&theirs).read(&mut buffer).unwrap();
        let command: Value = serde_json::from_slice(&buffer[..count]).unwrap();
        writeln!(writer, "{}", json!({ "return": {}, "id": command["id"] })).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(&theirs, &mut vectors, &mut control, RecvFlags::empty()).unwrap().bytes;
        let command: Value = serde_json::from_slice(&buffer[..got]).unwrap();
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        writeln!(writer, "{}", json!({ "return": {}, "id": command["id"] })).unwrap();
        let mut text = String::new();
        std::fs::File::from(fd.unwrap()).read_to_string(&mut text).unwrap();
        (command, text)
    });
    let qmp = Qmp::open(ours, Duration::from_secs(5)).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"hello").unwrap();
    file.rewind().unwrap();
    qmp.send_fd("state", file.as_fd()).unwrap();
    let (command, text) = server.join().unwrap();
    assert_eq!((&command["execute"], &command["arguments"]["fdname"]), (&json!("getfd"), &json!("state")));
    assert_eq!(text, "hello");
}

#[test]
fn resets_are_counted() {
    let (qmp, _server) = open(&[&[
        r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}, "timestamp": {"seconds": 1}}"#,
        r#"{"return": {}, "id": ID}"#,
    ]]);
    assert_eq!(qmp.resets(), 0);
    qmp.raw("system_reset", Value::Null).unwrap();
    assert_eq!(qmp.resets(), 1);
}
