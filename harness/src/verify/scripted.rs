//! A guest agent on a socket that answers as a test says.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

/// Serves a socket in a folder of its own; `answer` is asked with command and arguments. Synchronising is done here.
pub(super) fn agent(
    mut answer: impl FnMut(&str, &Value) -> Value + Send + 'static,
) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ga.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, &mut answer);
        }
    });
    (dir, socket)
}

fn serve(mut stream: UnixStream, answer: &mut dyn FnMut(&str, &Value) -> Value) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let clean: Vec<u8> = line.drain(..).filter(|byte| *byte != 0xff).collect();
        let Ok(request) = serde_json::from_slice::<Value>(&clean) else { continue };
        let arguments = &request["arguments"];
        let answer = match request["execute"].as_str().unwrap_or("") {
            "guest-sync-delimited" => {
                let _ = stream.write_all(&[0xff]);
                arguments["id"].clone()
            }
            command => answer(command, arguments),
        };
        if stream.write_all(format!("{}\n", json!({ "return": answer })).as_bytes()).is_err() {
            return;
        }
    }
}

/// Program and arguments of `guest-exec`.
pub(super) fn command(arguments: &Value) -> Vec<String> {
    let words = arguments["arg"].as_array().into_iter().flatten().filter_map(Value::as_str);
    arguments["path"].as_str().into_iter().chain(words).map(str::to_owned).collect()
}

/// A program that ended with `code` and this output.
pub(super) fn ended(code: i64, output: &str) -> Value {
    json!({"exited": true, "exitcode": code, "out-data": BASE64_STANDARD.encode(output)})
}

/// What `guest-file-write` brings, and the answer to it.
pub(super) fn written(arguments: &Value) -> (Vec<u8>, Value) {
    let bytes = BASE64_STANDARD.decode(arguments["buf-b64"].as_str().unwrap_or("")).unwrap();
    let answer = json!({"count": bytes.len(), "eof": false});
    (bytes, answer)
}

/// What `guest-file-read` gives of a file that fits into one answer.
pub(super) fn read(bytes: &[u8]) -> Value {
    json!({"count": bytes.len(), "buf-b64": BASE64_STANDARD.encode(bytes), "eof": true})
}
