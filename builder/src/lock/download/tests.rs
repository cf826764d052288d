//! Downloads from a server on the loopback that cuts off, changes its mind, redirects and lies.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

/// What a request gets: written as it is.
pub(in crate::lock) type Answers = dyn Fn(&str, Option<u64>) -> Vec<u8> + Send + Sync;

/// A server for one test; its threads end with the process.
pub(in crate::lock) struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(in crate::lock) fn new(answers: Box<Answers>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), &seen, &*answers);
            }
        });
        Self { port, requests }
    }

    pub(in crate::lock) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(in crate::lock) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>, answers: &Answers) -> io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(stream.try_clone()?);
    while lines.read_line(&mut head)? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let from =
        header("Range").and_then(|range| range.trim_start_matches("bytes=").strip_suffix('-')?.parse().ok());
    let condition = header("If-Range").map(|version| format!(" if {version}")).unwrap_or_default();
    seen.lock().unwrap().push(format!("{path} from {}{condition}", from.unwrap_or(0)));
    stream.write_all(&answers(&path, from))
}

pub(in crate::lock) fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn contents() -> Vec<u8> {
    (0..900_000u32).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

fn get(url: &str, folder: &Path) -> Result<Vec<u8>, String> {
    let path = download(url, folder, &|_| {}).map_err(FetchError::sentence)?;
    Ok(fs::read(path).unwrap())
}

#[test]
fn a_file_comes_whole_behind_redirections_with_its_progress() {
    let server = Server::new(Box::new(|path, _| match path {
        "/old.iso" => reply("302 Found", "Location: /new.iso\r\nContent-Length: 4\r\n", b"gone"),
        _ => reply("200 OK", "Content-Length: 900000\r\n", &contents()),
    }));
    let dir = tempfile::tempdir().unwrap();
    let seen = RefCell::new(Vec::new());
    let note = |progress: Progress<'_>| {
        seen.borrow_mut().push((progress.file.to_owned(), progress.done, progress.total));
    };
    let path = download(&server.url("/old.iso?token=x"), dir.path(), &note);
    let path = path.map_err(FetchError::sentence).unwrap();
    assert!(fs::read(path).unwrap() == contents());
    assert_eq!(seen.borrow().last().unwrap(), &("old.iso".to_owned(), 900_000, Some(900_000)));
}

#[test]
fn what_was_cut_off_is_continued_and_only_the_rest_is_fetched() {
    let server = Server::new(Box::new(|_, from| {
        let from = usize::try_from(from.unwrap_or(0)).unwrap();
        let left = &contents()[from..];
        let tag = "ETag: \"v1\"\r\n";
        let some = &left[..left.len().min(400_000)];
        match from {
            0 => reply("200 OK", &format!("{tag}Content-Length: {}\r\n", left.len()), some),
            _ => {
                let range = format!(
                    "{tag}Content-Length: {}\r\nContent-Range: bytes {from}-899999/900000\r\n",
                    left.len()
                );
                reply("206 Partial Content", &range, some)
            }
        }
    }));
    let dir = tempfile::tempdir().unwrap();
    assert!(get(&server.url("/a.iso"), dir.path()).unwrap() == contents());
    assert_eq!(
        server.requests(),
        ["/a.iso from 0", "/a.iso from 400000 if \"v1\"", "/a.iso from 800000 if \"v1\""]
    );
}

#[test]
fn a_part_of_another_version_is_thrown_away() {
    let server = Server::new(Box::new(|_, _| {
        reply("200 OK", "ETag: \"v2\"\r\nContent-Length: 900000\r\n", &contents())
    }));
    let dir = tempfile::tempdir().unwrap();
    let url = server.url("/a.iso");
    let mut part = Part::open(&url, dir.path()).map_err(FetchError::sentence).unwrap();
    part.restart(Some("\"v1\"".into())).unwrap();
    part.file.write_all(b"old bytes").unwrap();
    let busy = get(&url, dir.path()).unwrap_err();
    assert!(busy.contains("is being fetched by another no43"), "{busy}");
    drop(part);
    assert!(get(&url, dir.path()).unwrap() == contents());
    assert_eq!(server.requests(), ["/a.iso from 0".replace('0', "9 if \"v1\"")]);
}

#[test]
fn a_part_that_is_the_whole_already_starts_anew() {
    let server = Server::new(Box::new(|_, from| match from {
        Some(_) => reply("416 Range Not Satisfiable", "Content-Length: 0\r\n", b""),
        None => reply("200 OK", "Content-Length: 3\r\n", b"new"),
    }));
    let dir = tempfile::tempdir().unwrap();
    let url = server.url("/a.iso");
    let mut part = Part::open(&url, dir.path()).map_err(FetchError::sentence).unwrap();
    part.restart(Some("\"v1\"".into())).unwrap();
    part.file.write_all(b"old").unwrap();
    drop(part);
    assert_eq!(get(&url, dir.path()).unwrap(), b"new");
}

#[test]
fn a_page_is_never_taken_for_a_file() {
    let server = Server::new(Box::new(|path, _| match path {
        "/typed.iso" => reply("200 OK", "Content-Type: text/html; charset=utf-8\r\n", b"plain words"),
        _ => reply(
            "200 OK",
            "Content-Type: application/octet-stream\r\n",
            b"\n<!DOCTYPE html><title>Sign in</title>",
        ),
    }));
    let dir = tempfile::tempdir().unwrap();
    for path in ["/typed.iso", "/untyped.iso"] {
        let error = get(&server.url(path), dir.path()).unwrap_err();
        assert!(error.contains("gives an HTML page, not a file; take the address"), "{error}");
    }
    assert!(get(&server.url("/page.html"), dir.path()).unwrap().starts_with(b"\n<!DOCTYPE"));
}

#[test]
fn what_cannot_be_fetched_says_why_and_what_is_kept() {
    let server = Server::new(Box::new(|path, _| match path.split('?').next().unwrap() {
        "/none.iso" => reply("404 Not Found", "Content-Length: 0\r\n", b""),
        "/secret.iso" => reply("403 Forbidden", "Content-Length: 0\r\n", b""),
        _ => reply("200 OK", "ETag: \"v1\"\r\nContent-Length: 100\r\n", b"ten bytes."),
    }));
    let dir = tempfile::tempdir().unwrap();
    let none = download(&server.url("/none.iso"), dir.path(), &|_| {}).unwrap_err();
    assert!(matches!(none, FetchError::NotThere(_)), "{none:?}");
    let error = get(&server.url("/secret.iso?signature=abc"), dir.path()).unwrap_err();
    assert!(error.ends_with("/secret.iso: the server says 403"), "{error}");
    let error = get(&server.url("/short.iso"), dir.path()).unwrap_err();
    assert!(error.contains("10 bytes are kept, the next try goes on there"), "{error}");
    let error = get("http://127.0.0.1:9/a.iso", dir.path()).unwrap_err();
    assert!(error.starts_with("failed to fetch http://127.0.0.1:9/a.iso: (7) Failed to connect"), "{error}");
}

#[test]
fn secrets_of_an_address_are_not_shown_and_quotes_stay_inside() {
    assert_eq!(shown("https://me:pw@host/a.iso?sig=1"), "https://host/a.iso");
    assert_eq!(shown("https://host/a@b.iso"), "https://host/a@b.iso");
    let text = config("http://h/\"\noutput = \"x", 5, Some("\"v\\1\""));
    assert!(text.starts_with("url = \"http://h/\\\"output = \\\"x\"\n"), "{text}");
    assert!(text.ends_with("header = \"If-Range: \\\"v\\\\1\\\"\"\n"), "{text}");
}

proptest::proptest! {
    #[test]
    fn no_head_is_a_panic(bytes: Vec<u8>) {
        let _ = read_head(&mut bytes.as_slice());
    }
}
