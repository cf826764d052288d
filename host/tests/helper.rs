//! The helper on its socket, over a host made of files: what it does, what it refuses, and what it writes into its log.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use common::{FakeHost, Mood};
use no43_host::helper::{self, Helper};
use no43_host::{Limits, ProcessRef};

const LIMIT: Duration = Duration::from_secs(30);

/// Asks the helper of this host one thing after the other, and returns the answers and the log.
fn conversation(host: &FakeHost, requests: &[&str]) -> (Vec<String>, Vec<String>) {
    let socket = host.dir.path().join("helper.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let log = Mutex::new(Vec::new());
    let helper = Helper {
        group: rustix::process::getegid().as_raw(),
        roots: host.roots.clone(),
        state: host.state.clone(),
        bridges: PathBuf::from("/nonexistent"),
        limits: Limits::default(),
        idle: Some(Duration::from_millis(200)),
    };
    let answers = std::thread::scope(|scope| {
        let note = |line: &str| log.lock().unwrap().push(line.to_owned());
        let served = scope.spawn(move || helper::serve(&listener, &helper, &note));
        let answers: Vec<String> =
            requests.iter().map(|request| helper::ask(&socket, request, LIMIT).unwrap()).collect();
        served.join().unwrap().unwrap();
        answers
    });
    let _ = fs::remove_file(&socket);
    (answers, log.into_inner().unwrap())
}

fn owner(host: &FakeHost) -> String {
    serde_json::to_string(&ProcessRef::current(&host.roots)).unwrap()
}

fn bind(host: &FakeHost) -> String {
    format!(
        r#"{{"verb":"bind","functions":["01:00.0","01:00.1"],"lease":"1-2-3","holder":"a test","owner":{}}}"#,
        owner(host)
    )
}

#[test]
fn a_card_is_bound_and_released_and_each_request_has_its_line() {
    let mut host = FakeHost::lab();
    host.start_kernel(Mood::Obedient);
    let release = r#"{"verb":"release","functions":["01:00.0","01:00.1"]}"#;
    let (answers, log) = conversation(&host, &[r#"{"verb":"hello"}"#, &bind(&host)]);
    assert_eq!(answers[0], r#"{"reply":"hello"}"#);
    assert!(
        answers[1].starts_with(r#"{"reply":"bound","nodes":[{"address":"0000:01:00.0","group":4"#),
        "{answers:?}"
    );
    assert_eq!(host.driver("01:00.1").as_deref(), Some("vfio-pci"));
    assert_eq!(host.state.journal(&host.roots).len(), 2, "written down");
    let me = format!("uid={} pid={}", rustix::process::getuid().as_raw(), std::process::id());
    assert_eq!(log[0].split(": done").next(), Some(format!("{me} hello").as_str()));
    assert_eq!(
        log[1].split(": done").next(),
        Some(format!("{me} bind 0000:01:00.0 0000:01:00.1 lease=1-2-3 for 'a test'").as_str())
    );
    let (answers, log) = conversation(&host, &[release]);
    assert!(answers[0].contains(r#""reply":"released""#) && answers[0].contains(r#""quarantined":null"#));
    assert!(log[0].contains("release 0000:01:00.0 0000:01:00.1 lease=-: done"), "{log:?}");
    assert_eq!(host.driver("01:00.0").as_deref(), Some("bochs-drm"));
    assert!(host.state.journal(&host.roots).is_empty());
}

#[test]
fn what_is_not_one_of_the_verbs_changes_nothing() {
    let host = FakeHost::lab();
    let before = host.picture();
    // more than the socket takes before the helper has refused it
    let long = format!(r#"{{"verb":"hello{}"}}"#, "x".repeat(4_000_000));
    let half = r#"{"verb":"bind","functions":["01:00.0"],"lease":"1","holder":"x","owner":{"pid":1,"start_time":1}}"#;
    let path = r#"{"verb":"release","functions":["01:00.0"],"path":"/sys/bus/pci/devices"}"#;
    let driver = r#"{"verb":"bind","functions":["01:00.0"],"driver":"nouveau"}"#;
    let bridge = format!(
        r#"{{"verb":"network","device":{{"net":"tap","bridge":"br0"}},"lease":"1","owner":{}}}"#,
        owner(&host)
    );
    let (answers, log) = conversation(&host, &["nonsense", &long, half, path, driver, &bridge, "\u{1b}[2J"]);
    assert!(answers.iter().all(|answer| answer.starts_with(r#"{"reply":"failed""#)), "{answers:#?}");
    // whoever runs this test is who asks: root may join anything that is there
    let why = if rustix::process::getuid().is_root() { "has no bridge 'br0'" } else { "/etc/no43/bridges" };
    assert!(answers[5].contains(why), "{}", answers[5]);
    assert_eq!(log.len(), 7);
    assert!(log.iter().all(|line| !line.contains('\u{1b}') && !line.contains(": done")), "{log:#?}");
    let mut after = host.picture();
    after.remove(&host.state.system().join("host.lock"));
    assert!(after == before, "something was changed");
}

#[test]
fn huge_pages_are_added_written_down_and_taken_back() {
    let host = FakeHost::lab();
    let pool = host.roots.sys.join("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    fs::create_dir_all(pool.parent().unwrap()).unwrap();
    fs::write(&pool, "10\n").unwrap();
    let ask = format!(r#"{{"verb":"hugepages","pages":80,"lease":"1-2-3","owner":{}}}"#, owner(&host));
    let (answers, _) = conversation(&host, &[&ask]);
    assert_eq!(answers[0], r#"{"reply":"hugepages","pages":80}"#);
    assert_eq!(fs::read_to_string(&pool).unwrap(), "90\n");
    let extras = host.state.system().join("extras");
    assert_eq!(fs::read_dir(&extras).unwrap().count(), 1);
    let (answers, _) = conversation(&host, &[r#"{"verb":"release","functions":[],"lease":"1-2-3"}"#]);
    assert!(answers[0].contains("released"), "{answers:?}");
    assert_eq!(fs::read_to_string(&pool).unwrap(), "10\n");
    assert_eq!(fs::read_dir(&extras).unwrap().count(), 0);
}

#[test]
fn pages_of_the_dead_go_back_at_the_next_request() {
    let host = FakeHost::lab();
    let pool = host.roots.sys.join("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    fs::create_dir_all(pool.parent().unwrap()).unwrap();
    fs::write(&pool, "10\n").unwrap();
    let ask = |lease: &str, pages: u32| {
        format!(r#"{{"verb":"hugepages","pages":{pages},"lease":"{lease}","owner":{}}}"#, owner(&host))
    };
    conversation(&host, &[&ask("dead", 20)]);
    let file = fs::read_dir(host.state.system().join("extras")).unwrap().next().unwrap().unwrap().path();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    json["owner"]["start_time"] = 1.into();
    fs::write(&file, json.to_string()).unwrap();
    conversation(&host, &[&ask("alive", 30)]);
    assert_eq!(fs::read_to_string(&pool).unwrap(), "40\n");
}

#[test]
fn who_says_nothing_or_goes_away_stops_nobody() {
    let host = FakeHost::lab();
    let socket = host.dir.path().join("helper.sock");
    let silent = std::thread::spawn({
        let socket = socket.clone();
        move || {
            while !socket.exists() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            let _gone = UnixStream::connect(&socket).map(drop);
            let mut half = UnixStream::connect(&socket).unwrap();
            half.write_all(br#"{"verb":"#).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let (answers, _) = conversation(&host, &[r#"{"verb":"hello"}"#, r#"{"verb":"hello"}"#]);
    assert_eq!(answers.len(), 2);
    silent.join().unwrap();
}
