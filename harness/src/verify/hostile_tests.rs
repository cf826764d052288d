//! A guest agent that means harm, on a scripted socket: bounded memory, a named failure, no panic.

use super::guest::LiveGuest;
use crate::checks::Guest as _;
use base64::Engine as _;
use no43_machine::agent::Agent;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest does with a request, after it got in sync; what it returns is its answer.
type Does = fn(&str, &mut UnixStream) -> Option<Value>;

fn ask(does: Does, limit: Duration) -> (Result<no43_guest::protocol::Report, String>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ga.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, does);
        }
    });
    let began = Instant::now();
    let report = LiveGuest::of_agent(Agent::on_socket(&socket), limit).report();
    (report.map_err(|error| format!("{error:#}")), began.elapsed())
}

fn serve(mut stream: UnixStream, does: Does) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let clean: Vec<u8> = line.drain(..).filter(|byte| *byte != 0xff).collect();
        let Ok(request) = serde_json::from_slice::<Value>(&clean) else { continue };
        let command = request["execute"].as_str().unwrap_or("").to_owned();
        let answer = if command == "guest-sync-delimited" {
            let _ = stream.write_all(&[0xff]);
            Some(request["arguments"]["id"].clone())
        } else {
            does(&command, &mut stream)
        };
        let Some(answer) = answer else { continue };
        if stream.write_all(format!("{}\n", json!({ "return": answer })).as_bytes()).is_err() {
            return;
        }
    }
}

/// A program that ended with this output.
fn ended(output: &[u8]) -> Value {
    json!({"exited": true, "exitcode": 0, "out-data": base64::engine::general_purpose::STANDARD.encode(output)})
}

fn says(command: &str, output: &[u8]) -> Option<Value> {
    match command {
        "guest-exec" => Some(json!({"pid": 7})),
        "guest-exec-status" => Some(ended(output)),
        _ => Some(json!({})),
    }
}

/// Most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn lies_are_named() {
    let lie = |does| ask(does, SOON).0.expect_err("a lie is no report");
    let shape = lie(|c, _| says(c, br#"{"functions": "all of them"}"#));
    assert!(shape.contains("cannot be read"), "{shape}");
    let empty = lie(|c, _| says(c, b""));
    assert!(empty.contains("cannot be read"), "{empty}");
    let no_pid = lie(|c, _| (c == "guest-exec").then(|| json!("seven")));
    assert!(no_pid.contains("guest-exec"), "{no_pid}");
    let refused = lie(|c, stream| {
        let line = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"\\u001b[2J not today\"}}\n";
        (c != "guest-exec").then(|| json!({})).or_else(|| {
            let _ = stream.write_all(line.as_bytes());
            None
        })
    });
    assert!(refused.contains("not today"), "{refused}");
}

#[test]
fn deep_json_is_no_stack_overflow() {
    let deep = |c: &str, _: &mut UnixStream| says(c, format!("{{\"x\": {}", "[".repeat(200_000)).as_bytes());
    let error = ask(deep, SOON).0.unwrap_err();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn a_long_answer_of_the_program_is_refused_by_its_length() {
    let long = |c: &str, _: &mut UnixStream| says(c, &vec![b' '; 3 << 20]);
    let error = ask(long, SOON).0.unwrap_err();
    assert!(error.contains("3145728 bytes, more than"), "{error}");
}

#[test]
fn a_gigabyte_in_one_answer_is_cut_off_and_not_kept() {
    let before = peak();
    let flood = |c: &str, stream: &mut UnixStream| {
        if c != "guest-exec" {
            return Some(json!({}));
        }
        let block = vec![b'A'; 1 << 20];
        let _ = stream.write_all(b"{\"return\": {\"pid\": \"");
        for _ in 0..1024 {
            if stream.write_all(&block).is_err() {
                return None; // hung up on, as it should be
            }
        }
        let _ = stream.write_all(b"\"}}\n");
        None
    };
    let (report, took) = ask(flood, Duration::from_secs(20));
    let error = report.unwrap_err();
    assert!(took < Duration::from_secs(60), "{took:?}");
    let grown = peak().saturating_sub(before) >> 10;
    assert!(grown < 300, "{grown} MiB more for a flood: {error}");
}

#[test]
fn a_program_that_never_ends_is_given_up() {
    let (report, took) = ask(
        |c, _| match c {
            "guest-exec" => Some(json!({"pid": 7})),
            "guest-exec-status" => Some(json!({"exited": false})),
            _ => Some(json!({})),
        },
        Duration::from_millis(700),
    );
    let error = report.unwrap_err();
    assert!(error.contains("did not end within"), "{error}");
    assert!(took < SOON, "{took:?}");
}

#[test]
fn an_answer_to_another_request_is_no_report() {
    let (report, _) = ask(
        |c, _| match c {
            "guest-exec" => Some(json!({"pid": 7})),
            // the answer to a question about the system
            "guest-exec-status" => Some(json!({"name": "Debian", "id": "debian"})),
            _ => Some(json!({})),
        },
        Duration::from_millis(700),
    );
    let error = report.unwrap_err();
    assert!(error.contains("guest-exec-status") || error.contains("did not end"), "{error}");
}
