//! Stop codes of Windows: what QEMU tells of them, and the dump that Windows has written by its next start.
//!
//! The machine goes on after QEMU has heard of a stop, because Windows writes its dump then and restarts by itself. A dump is taken
//! for this stop's only if code and parameters in its header are those that QEMU was told: times in a guest mean little.

use crate::words;
use no43_machine::agent::{Agent, ExecLimits};
use no43_machine::{AgentError, Event};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::guest::Over;

/// From the stop to the machine's RESET: a kernel dump is some hundred megabytes, written by the slowest of Windows' drivers.
pub(super) const RESTART_LIMIT: Duration = Duration::from_secs(600);
/// From the agent's first answer: Windows takes the small dump out of the large one after its start.
pub(super) const DUMP_LIMIT: Duration = Duration::from_secs(120);
/// How long a small dump is waited for where the large one is there already.
const SMALL_LIMIT: Duration = Duration::from_secs(45);
/// Between two looks for a dump.
const PAUSE: Duration = Duration::from_secs(3);
/// A question of a second.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// A larger dump stays in the guest.
const MOST: u64 = 1 << 30;
/// Small dumps that are looked at, the newest first.
const MOST_FILES: usize = 8;
/// Stops that are remembered: a guest may stop at every start.
const MOST_STOPS: usize = 16;
/// Where Windows puts dumps, unless it is told another place (`MinidumpDir`, `DumpFile`).
const SMALL: &str = r"C:\Windows\Minidump";
const LARGE: &str = r"C:\Windows\MEMORY.DMP";

/// A stop of Windows: the number on its blue screen with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    /// `None`: QEMU was told of a stop without its number.
    code: Option<u32>,
    parameters: [u64; 4],
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.parameters;
        match self.code {
            Some(code) => write!(f, "stop code {code:#x} ({a:#x}, {b:#x}, {c:#x}, {d:#x})"),
            None => f.write_str("a stop code that it did not tell"),
        }
    }
}

impl Stop {
    /// From QEMU's `GUEST_PANICKED`, where Hyper-V's crash enlightenment gave it numbers.
    fn told(event: &Event) -> Option<Self> {
        if event.name != "GUEST_PANICKED" {
            return None;
        }
        let info = event.data.get("info");
        let info = info.filter(|info| info.get("type").and_then(|kind| kind.as_str()) == Some("hyper-v"));
        let number = |name: &str| info.and_then(|info| info.get(name)).and_then(serde_json::Value::as_u64);
        let parameter = |name: &str| number(name).unwrap_or_default();
        let parameters = ["arg2", "arg3", "arg4", "arg5"].map(parameter);
        Some(Self { code: number("arg1").and_then(|code| u32::try_from(code).ok()), parameters })
    }

    /// The number alone, as causes know it.
    pub(super) fn code(&self) -> Option<String> {
        self.code.map(|code| format!("{code:#x}"))
    }

    /// From a dump's first bytes: `DUMP_HEADER64`, as QEMU's `win_dump_defs.h` has it. `None`: it is no dump of a 64-bit Windows.
    fn of_dump(header: &[u8]) -> Option<Self> {
        if !header.starts_with(b"PAGEDU64") {
            return None;
        }
        let code = u32::from_le_bytes(header.get(0x38..0x3c)?.try_into().ok()?);
        let mut parameters = [0; 4];
        for (parameter, bytes) in parameters.iter_mut().zip(header.get(0x40..0x60)?.chunks_exact(8)) {
            *parameter = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(Self { code: Some(code), parameters })
    }

    /// Windows marks a code (0x1000007e for 0x7e) where a thread of its own stopped it.
    fn is(&self, other: &Self) -> bool {
        const MARK: u32 = 0x1000_0000;
        let same = self.code.zip(other.code).is_some_and(|(one, other)| one & !MARK == other & !MARK);
        same && self.parameters == other.parameters
    }
}

/// What a machine's QEMU has told of stops and restarts.
#[derive(Debug)]
pub(super) struct Stops {
    events: Receiver<Event>,
    stops: Vec<Stop>,
    restarted: bool,
}

impl Stops {
    pub(super) fn of(events: Receiver<Event>) -> Self {
        Self { events, stops: Vec::new(), restarted: false }
    }

    /// The first stop so far.
    pub(super) fn first(&mut self) -> Option<Stop> {
        while let Ok(event) = self.events.try_recv() {
            self.take(&event);
        }
        self.stops.first().copied()
    }

    fn take(&mut self, event: &Event) {
        if let Some(stop) = Stop::told(event) {
            self.restarted = false;
            if self.stops.len() < MOST_STOPS {
                self.stops.push(stop);
            }
        }
        self.restarted |= event.name == "RESET";
    }

    /// Until the machine has restarted after the last stop.
    pub(super) fn wait_restart(&mut self, limit: Duration, over: &Over<'_>) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let _ = self.first();
            if self.restarted {
                return Ok(());
            }
            if let Some(why) = over() {
                return Err(why);
            }
            if began.elapsed() > limit {
                return Err(format!("Windows did not restart within {} after its stop", words::limit(limit)));
            }
            match self.events.recv_timeout(Duration::from_millis(500)) {
                Ok(event) => self.take(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("QEMU closed its control connection".to_owned());
                }
            }
        }
    }
}

/// A dump that lies in a folder of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dump {
    /// The file's name.
    pub(super) name: String,
    /// Its size.
    pub(super) bytes: u64,
    /// What its header says.
    pub(super) stop: Stop,
}

/// Looks for the dump of one of these stops in a Windows that runs again, and fetches it into `folder`, which is made.
///
/// # Errors
/// A sentence why there is none.
pub(super) fn fetch(
    agent: &Agent,
    stops: &Stops,
    folder: &Path,
    limit: Duration,
    over: &Over<'_>,
) -> Result<Dump, String> {
    let began = Instant::now();
    loop {
        let small = small_dumps(agent)?;
        let is_small = |path: &String| path.starts_with(SMALL);
        let all = small.iter().cloned().chain([LARGE.to_owned()]);
        let looked: Vec<(String, Option<Stop>)> =
            all.map(|path| (path.clone(), header(agent, &path))).collect();
        let of_stop = |stop: &Stop| stops.stops.iter().any(|told| told.is(stop));
        let found = looked.iter().find_map(|(path, stop)| Some((path, stop.filter(of_stop)?)));
        let enough = began.elapsed() > SMALL_LIMIT.min(limit);
        match found {
            Some((path, stop)) if is_small(path) || enough => return keep(agent, path, stop, folder, over),
            _ => {}
        }
        if let Some(why) = over() {
            return Err(why);
        }
        if began.elapsed() > limit {
            return Err(none(&looked));
        }
        std::thread::sleep(PAUSE.min(limit));
    }
}

/// Why none of these is the one.
fn none(looked: &[(String, Option<Stop>)]) -> String {
    let others: Vec<String> =
        looked.iter().filter_map(|(path, stop)| Some(format!("{path} is of {}", stop.as_ref()?))).collect();
    match others.is_empty() {
        true => format!("Windows has written no dump: there is none in {SMALL}, and no {LARGE}"),
        false => format!("Windows has written no dump of this stop: {}", others.join(", ")),
    }
}

/// Paths of small dumps, the newest first. Names are the guest's and become paths in it: only plain ones count.
fn small_dumps(agent: &Agent) -> Result<Vec<String>, String> {
    let argv = ["cmd.exe", "/d", "/c", "dir", "/b", "/o-d", r"C:\Windows\Minidump\*.dmp"];
    // 'not found' is exit code 1 and no name
    let output = agent.exec(&argv, &ExecLimits::within(ASK_LIMIT)).map_err(|error| error.to_string())?;
    let text = output.stdout_text();
    let names = text.lines().map(str::trim).filter(|name| is_plain(name));
    Ok(names.take(MOST_FILES).map(|name| format!(r"{SMALL}\{name}")).collect())
}

fn is_plain(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(good)
        && name.to_ascii_lowercase().ends_with(".dmp")
}

/// What a dump says of its stop; `None`: it is not there, or no dump.
fn header(agent: &Agent, path: &str) -> Option<Stop> {
    let (bytes, _) = agent.read_file_prefix(path, 0x1000).ok()?;
    Stop::of_dump(&bytes)
}

/// Copies a dump, whole or not at all.
fn keep(agent: &Agent, path: &str, stop: Stop, folder: &Path, over: &Over<'_>) -> Result<Dump, String> {
    let name = path.rsplit('\\').next().unwrap_or(path).to_owned();
    let failed = |error: io::Error| format!("failed to keep {name} in {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let (aside, to) = (folder.join(format!("{name}.part")), folder.join(&name));
    let copied = copy(agent, path, &aside, over).and_then(|bytes| {
        fs::rename(&aside, &to).map_err(failed)?;
        Ok(bytes)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&aside); // nothing more can be done about a second failure
    }
    Ok(Dump { name: name.clone(), bytes: copied?, stop })
}

fn copy(agent: &Agent, path: &str, to: &Path, over: &Over<'_>) -> Result<u64, String> {
    let lost = |error: AgentError| format!("failed to read {path} in the guest: {error}");
    let failed = |error: io::Error| format!("failed to write {}: {error}", to.display());
    let from = agent.follow_file(path).map_err(lost)?;
    let mut file = File::create(to).map_err(failed)?;
    let mut bytes = 0;
    let copied = loop {
        match from.more() {
            Ok(chunk) if chunk.is_empty() => break file.sync_all().map_err(failed),
            Ok(chunk) => {
                bytes += chunk.len() as u64;
                if bytes > MOST {
                    let most = words::bytes(MOST);
                    break Err(format!(
                        "{path} has more than {most} and stays in the guest: --keep-on-failure keeps that"
                    ));
                }
                if let Err(why) = file.write_all(&chunk).map_err(failed) {
                    break Err(why);
                }
            }
            Err(error) => break Err(lost(error)),
        }
        if let Some(why) = over() {
            break Err(why);
        }
    };
    let _ = from.close(); // the guest's agent closes it with its own end, too
    copied.map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::scripted;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    const NEVER: &Over<'static> = &|| None;

    fn event(name: &str, info: &Value) -> Event {
        let data = json!({ "action": "run", "info": info });
        Event { name: name.into(), data, seconds: 0.0, raw: Value::Null }
    }

    fn windows(code: u64, first: u64) -> Event {
        let info = json!({"type": "hyper-v", "arg1": code, "arg2": first, "arg3": 2, "arg4": 3, "arg5": 4});
        event("GUEST_PANICKED", &info)
    }

    /// A dump as Windows writes it, as far as its header goes.
    fn dump(code: u32, first: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0x5a; size];
        bytes[..8].copy_from_slice(b"PAGEDU64");
        bytes[0x38..0x3c].copy_from_slice(&code.to_le_bytes());
        for (at, parameter) in [first, 2, 3, 4].into_iter().enumerate() {
            bytes[0x40 + at * 8..][..8].copy_from_slice(&parameter.to_le_bytes());
        }
        bytes
    }

    fn stops(events: &[Event]) -> (std::sync::mpsc::Sender<Event>, Stops) {
        let (sender, receiver) = channel();
        events.iter().for_each(|event| sender.send(event.clone()).unwrap());
        let mut stops = Stops::of(receiver);
        let _ = stops.first();
        (sender, stops)
    }

    #[test]
    fn a_stop_is_windows_own_and_the_first_one_counts() {
        let first = |events: &[Event]| stops(events).1.first().map(|stop| stop.to_string());
        let both = [event("RESET", &Value::Null), windows(0x116, 1), windows(0x7e, 1)];
        assert_eq!(first(&both).as_deref(), Some("stop code 0x116 (0x1, 0x2, 0x3, 0x4)"));
        assert_eq!(first(&[event("RESET", &json!({"type": "hyper-v", "arg1": 1}))]), None);
        for odd in [Value::Null, json!({"type": "s390", "core": 0}), json!({"type": "hyper-v", "arg1": -1})] {
            let said = first(&[event("GUEST_PANICKED", &odd)]);
            assert_eq!(said.as_deref(), Some("a stop code that it did not tell"));
        }
        let many = vec![windows(0x116, 1); 100];
        assert_eq!(stops(&many).1.stops.len(), MOST_STOPS);
    }

    #[test]
    fn a_restart_counts_after_the_stop_only() {
        let (sender, mut early) = stops(&[event("RESET", &Value::Null), windows(0x116, 1)]);
        let why = early.wait_restart(Duration::ZERO, NEVER).unwrap_err();
        assert_eq!(why, "Windows did not restart within 0 ms after its stop");
        assert_eq!(early.wait_restart(DUMP_LIMIT, &|| Some("stopped".into())).unwrap_err(), "stopped");
        sender.send(event("RESET", &Value::Null)).unwrap();
        assert_eq!(early.wait_restart(DUMP_LIMIT, NEVER), Ok(()));
        let (gone, mut alone) = stops(&[windows(0x116, 1)]);
        drop(gone);
        assert_eq!(alone.wait_restart(DUMP_LIMIT, NEVER).unwrap_err(), "QEMU closed its control connection");
    }

    /// A Windows with these files; gives what was opened, too.
    fn guest(files: Vec<(&'static str, Vec<u8>)>) -> (tempfile::TempDir, Agent, Arc<Mutex<Vec<String>>>) {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&opened);
        let names: Vec<&str> =
            files.iter().filter_map(|(path, _)| path.strip_prefix(r"C:\Windows\Minidump\")).collect();
        let listed = names.join("\r\n");
        let (mut open, mut at) = (Vec::new(), 0);
        let (dir, socket) = scripted::agent(move |command, arguments| match command {
            "guest-exec" => json!({"pid": 7}),
            "guest-exec-status" => scripted::ended(i64::from(listed.is_empty()), &listed),
            "guest-file-open" => {
                let path = arguments["path"].as_str().unwrap();
                log.lock().unwrap().push(path.to_owned());
                open = files
                    .iter()
                    .find(|(name, _)| *name == path)
                    .map_or_else(Vec::new, |(_, bytes)| bytes.clone());
                at = 0;
                json!(1000)
            }
            "guest-file-read" => {
                let count = usize::try_from(arguments["count"].as_u64().unwrap()).unwrap();
                let part = open[at..].iter().copied().take(count).collect::<Vec<_>>();
                at += part.len();
                scripted::read(&part)
            }
            _ => json!({}),
        });
        (dir, Agent::on_socket(socket), opened)
    }

    #[test]
    fn the_dump_of_this_stop_is_fetched_whole_and_older_ones_stay() {
        let wanted = dump(0x1000_007e, 9, 3 << 20);
        let (dir, agent, opened) = guest(vec![
            (r"C:\Windows\Minidump\112326-01.dmp", dump(0x116, 1, 5000)),
            (r"C:\Windows\Minidump\112326-02.dmp", wanted.clone()),
            (r"C:\Windows\Minidump\..\..\evil.dmp", wanted.clone()),
            (r"C:\Windows\MEMORY.DMP", wanted.clone()),
        ]);
        let folder = dir.path().join("dumps");
        let (_sender, stops) = stops(&[windows(0x7e, 9)]);
        let kept = fetch(&agent, &stops, &folder, DUMP_LIMIT, NEVER).unwrap();
        assert_eq!((kept.name.as_str(), kept.bytes), ("112326-02.dmp", wanted.len() as u64));
        assert_eq!(kept.stop.to_string(), "stop code 0x1000007e (0x9, 0x2, 0x3, 0x4)");
        assert_eq!(fs::read(folder.join("112326-02.dmp")).unwrap(), wanted);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(!opened.lock().unwrap().iter().any(|path| path.contains("evil")), "{opened:?}");
    }

    #[test]
    fn the_large_dump_is_taken_where_there_is_no_small_one() {
        let (dir, agent, _) = guest(vec![(r"C:\Windows\MEMORY.DMP", dump(0x116, 1, 20_000))]);
        let (_sender, stops) = stops(&[windows(0x116, 1)]);
        let kept = fetch(&agent, &stops, dir.path(), Duration::ZERO, NEVER).unwrap();
        assert_eq!((kept.name.as_str(), kept.bytes), ("MEMORY.DMP", 20_000));
    }

    #[test]
    fn where_there_is_none_it_is_said_why() {
        let of = |files| {
            let (dir, agent, _) = guest(files);
            let (_sender, stops) = stops(&[windows(0x116, 1)]);
            let why = fetch(&agent, &stops, dir.path(), Duration::ZERO, NEVER).unwrap_err();
            assert!(!dir.path().join("MEMORY.DMP").exists());
            why
        };
        insta::assert_snapshot!(of(vec![]), @r"Windows has written no dump: there is none in C:\Windows\Minidump, and no C:\Windows\MEMORY.DMP");
        insta::assert_snapshot!(of(vec![(r"C:\Windows\MEMORY.DMP", dump(0x116, 7, 5000))]), @r"Windows has written no dump of this stop: C:\Windows\MEMORY.DMP is of stop code 0x116 (0x7, 0x2, 0x3, 0x4)");
        insta::assert_snapshot!(of(vec![(r"C:\Windows\MEMORY.DMP", b"PAGEDUMP".repeat(100))]), @r"Windows has written no dump: there is none in C:\Windows\Minidump, and no C:\Windows\MEMORY.DMP");
        // a run that is stopped leaves no half a file
        let (dir, agent, _) = guest(vec![(r"C:\Windows\Minidump\a.dmp", dump(0x116, 1, 5 << 20))]);
        let (_sender, stops) = stops(&[windows(0x116, 1)]);
        let over = || Some("stopped".to_owned());
        assert_eq!(fetch(&agent, &stops, dir.path(), DUMP_LIMIT, &over).unwrap_err(), "stopped");
        assert!(
            !fs::read_dir(dir.path())
                .unwrap()
                .flatten()
                .any(|e| e.path().extension().is_some_and(|x| x == "part"))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_dump_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..0x70), whole: bool) {
            let bytes = if whole { [b"PAGEDU64".as_slice(), &bytes].concat() } else { bytes };
            let stop = Stop::of_dump(&bytes);
            assert_eq!(stop.is_some(), bytes.starts_with(b"PAGEDU64") && bytes.len() >= 0x60);
        }

        #[test]
        fn a_name_that_is_taken_leads_nowhere(name in "[a-zA-Z0-9./\\\\: é-]{0,12}(\\.dmp)?") {
            if is_plain(&name) {
                assert!(!name.contains(['/', '\\', ':', ' ']) && !name.starts_with('.'));
            }
        }
    }
}
