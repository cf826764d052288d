//! The bell: how a program's end in the guest is known at once, although the agent has no event for it.
//!
//! A short program is asked for after short pauses. Beside one that goes on, the guest program is started, which waits
//! for that process without asking, and rings: it writes a line into a virtio port. The bell only says *when* to ask; the
//! end is always the agent's word. A guest that has no bell, or rings falsely, is asked again after growing pauses.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::exec::{ExecLimits, GuestPid};
use super::{Agent, COMMAND_LIMIT};

/// A program that ends within this time is not worth a second one beside it, nor one that ends within so many times the time
/// that its own start took: in a slow guest the second one's start costs as much.
const SHORT: Duration = Duration::from_millis(100);
const STARTS: u32 = 10;

/// Without a bell, and until it is manned, the pause between two questions is this part of the time that the program has run,
/// and at least so many times what the last question took, within these bounds: asking must not be what a slow guest does.
const PART: u32 = 8;
const QUESTIONS: u32 = 8;
const OFTEN: Duration = Duration::from_millis(4);
const SELDOM: Duration = Duration::from_millis(200);

/// A bell that nobody mans within this time is none.
const MANNED_WITHIN: Duration = Duration::from_secs(5);

/// The agent is asked now and then all the same: a guest may be reset, its bell-ringer killed.
const IN_DOUBT: Duration = Duration::from_secs(1);

/// After the bell the agent needs a moment to notice the end itself. After this the bell was false, or somebody else still
/// holds the program's output.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);
const NOTICES: Duration = Duration::from_millis(1);

/// The longest line that the guest program writes is `waits` with a number of ten digits.
const LINE_MAX: usize = 32;

/// Lines heard at once that are about a program for which nobody waits any more, or that a reset cut.
const OTHERS_MAX: usize = 100;

/// Where a guest's bell hangs.
#[derive(Debug)]
pub(super) struct Bell {
    socket: PathBuf,
    program: String,
    ear: Mutex<Ear>,
}

/// The host's end of the bell.
#[derive(Debug, Default)]
struct Ear {
    state: EarState,
    line: Vec<u8>,
    /// Bell-ringers whose end the agent was not asked for yet: it keeps each until then.
    ringers: Vec<GuestPid>,
}

#[derive(Debug, Default)]
enum EarState {
    #[default]
    Untried,
    Listens(UnixStream),
    /// There is no bell, or it is not to be trusted.
    Deaf,
}

/// What the bell said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    /// The guest program waits for this process.
    Waits(i64),
    /// This process ended.
    Ended(i64),
    /// Anything else.
    Noise,
}

impl Bell {
    pub(super) fn new(socket: PathBuf, program: String) -> Self {
        Bell { socket, program, ear: Mutex::default() }
    }
}

/// The wait for the end of one program: makes the pauses between two questions whether it ended.
#[derive(Debug)]
pub struct EndWait<'a> {
    agent: &'a Agent,
    pid: GuestPid,
    limit: Duration,
    short: Duration,
    began: Instant,
    /// The end of the last pause: since then the agent was asked.
    asked: Instant,
    stage: Stage<'a>,
}

#[derive(Debug)]
enum Stage<'a> {
    /// The program may be short.
    Often,
    /// The guest program is there or on its way.
    Bell { ear: MutexGuard<'a, Ear>, since: Instant, manned: bool },
    /// It rang.
    Rang(Instant),
    /// There is no bell.
    Seldom,
}

impl Agent {
    /// For pauses while a program of [`Agent::spawn`] or [`Agent::spawn_with`] runs, whose start was asked for at `began` and
    /// has just been told, and for which nobody waits longer than `limit`.
    pub fn wait_for(&self, pid: GuestPid, began: Instant, limit: Duration) -> EndWait<'_> {
        let short = SHORT.max(began.elapsed() * STARTS);
        let now = Instant::now();
        EndWait { agent: self, pid, limit, short, began: now, asked: now, stage: Stage::Often }
    }

    /// Starts the guest program as the ringer for `pid`. `None` without a bell, or while another wait has it.
    fn man_bell(&self, pid: GuestPid, limit: Duration) -> Option<MutexGuard<'_, Ear>> {
        let bell = self.shared.bell.get()?;
        let mut ear = bell.ear.try_lock().ok()?;
        ear.listens(&bell.socket)?;
        let mut left = std::mem::take(&mut ear.ringers);
        left.retain(|&ringer| matches!(self.ended(ringer), Ok(None)));
        ear.ringers = left;
        let (pid, seconds) = (pid.to_string(), limit.as_secs().saturating_add(1).to_string());
        let argv = [&bell.program, "ring-at-end", pid.as_str(), "--seconds", seconds.as_str()];
        match self.begin(&argv, &ExecLimits::within(COMMAND_LIMIT), false) {
            Ok(ringer) => {
                ear.ringers.push(ringer);
                Some(ear)
            }
            Err(_) => {
                // the guest has no such program
                ear.state = EarState::Deaf;
                None
            }
        }
    }
}

impl EndWait<'_> {
    /// Waits until the program may have ended, and at most `longest`.
    pub fn pause(&mut self, longest: Duration) {
        let question = self.asked.elapsed();
        self.pause_after(question, longest);
        self.asked = Instant::now();
    }

    fn pause_after(&mut self, question: Duration, longest: Duration) {
        if matches!(self.stage, Stage::Often) && self.began.elapsed() >= self.short {
            self.stage = match self.agent.man_bell(self.pid, self.limit) {
                Some(ear) => Stage::Bell { ear, since: Instant::now(), manned: false },
                None => Stage::Seldom,
            };
        }
        let unknown = between_questions(self.began.elapsed(), question);
        let pause = match &mut self.stage {
            Stage::Bell { ear, since, manned } => {
                let longest = longest.min(if *manned { IN_DOUBT } else { unknown });
                if let Some(next) = listen(ear, self.pid, *since, manned, longest) {
                    self.stage = next;
                }
                return;
            }
            Stage::Rang(at) if at.elapsed() < NOTICED_WITHIN => NOTICES,
            Stage::Often | Stage::Rang(_) | Stage::Seldom => unknown,
        };
        std::thread::sleep(pause.min(longest));
    }
}

fn between_questions(running: Duration, question: Duration) -> Duration {
    (running / PART).max(question * QUESTIONS).clamp(OFTEN, SELDOM)
}

/// Listens for at most `longest`; the next stage, if there is a reason for one.
fn listen(
    ear: &mut Ear,
    pid: GuestPid,
    since: Instant,
    manned: &mut bool,
    longest: Duration,
) -> Option<Stage<'static>> {
    let until = Instant::now() + longest;
    for _ in 0..OTHERS_MAX {
        match ear.next(until) {
            Ok(Some(Rung::Ended(of))) if of == pid.0 => return Some(Stage::Rang(Instant::now())),
            Ok(Some(Rung::Waits(of))) if of == pid.0 && !*manned => {
                *manned = true;
                return None;
            }
            Ok(Some(_)) => {}
            Ok(None) if *manned || since.elapsed() < MANNED_WITHIN => return None,
            Ok(None) => return Some(Stage::Seldom),
            Err(_) => break,
        }
    }
    // QEMU hung up, or the guest floods the port
    ear.state = EarState::Deaf;
    Some(Stage::Seldom)
}

impl Ear {
    /// Connects once. Without blocking: QEMU serves one at a time, and whoever comes second would wait for the first.
    fn listens(&mut self, socket: &Path) -> Option<()> {
        if matches!(self.state, EarState::Untried) {
            let connected = || {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let end = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                connect(&end, &SocketAddrUnix::new(socket)?)?;
                rustix::io::ioctl_fionbio(&end, false)?;
                rustix::io::Result::Ok(UnixStream::from(end))
            };
            self.state = connected().map_or(EarState::Deaf, EarState::Listens);
        }
        matches!(self.state, EarState::Listens(_)).then_some(())
    }

    /// The next line; `None` after `until`. The bytes are the guest's.
    fn next(&mut self, until: Instant) -> std::io::Result<Option<Rung>> {
        let EarState::Listens(stream) = &mut self.state else { return Err(ErrorKind::NotConnected.into()) };
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(None);
            }
            stream.set_read_timeout(Some(rest.max(NOTICES)))?;
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" || self.line.len() == LINE_MAX => {
                    return Ok(Some(rung(&std::mem::take(&mut self.line))));
                }
                Ok(_) => self.line.push(byte[0]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A line of the guest program's `ring-at-end`.
fn rung(line: &[u8]) -> Rung {
    let words = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '));
    match words.map(|(word, number)| (word, number.parse())) {
        Some(("waits", Ok(pid))) => Rung::Waits(pid),
        Some(("ended", Ok(pid))) => Rung::Ended(pid),
        _ => Rung::Noise,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::agent_with;
    use super::*;

    /// What the agent of the program 7 and of its ringer 8 was asked.
    #[derive(Debug, Default)]
    struct Asked {
        ended: AtomicBool,
        whether: AtomicUsize,
        while_manned: AtomicUsize,
        to_ring: AtomicUsize,
    }

    const LIMIT: Duration = Duration::from_secs(20);
    const RINGER: &str = "no43-guest";

    /// Runs a program in a guest whose agent starts ringers, and whose bell is `ring`; twice.
    fn run(
        has_ringer: bool,
        ring: impl FnOnce(UnixStream, Arc<Asked>) + Send + 'static,
    ) -> (Arc<Asked>, thread::JoinHandle<()>) {
        let asked = Arc::new(Asked::default());
        let counts = Arc::clone(&asked);
        let (agent, dir, _server) = agent_with(1, move |guest| {
            while let Some(request) = guest.synced() {
                let ringer = request["arguments"]["path"] == RINGER;
                let answer = match request["execute"].as_str().unwrap() {
                    "guest-exec" if ringer => {
                        counts.to_ring.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(
                            request["arguments"]["arg"],
                            json!(["ring-at-end", "7", "--seconds", "21"])
                        );
                        json!({ "pid": 8 })
                    }
                    "guest-exec" => json!({ "pid": 7 }),
                    _ if request["arguments"]["pid"] == 8 => json!({ "exited": true, "exitcode": 0 }),
                    _ => {
                        counts.whether.fetch_add(1, Ordering::SeqCst);
                        json!({ "exited": counts.ended.load(Ordering::SeqCst), "exitcode": 3 })
                    }
                };
                let answer = match ringer && !has_ringer {
                    true => json!({ "error": { "class": "GenericError", "desc": "No such file" } }),
                    false => json!({ "return": answer }),
                };
                guest.say(format!("{answer}\n").as_bytes());
            }
        });
        let socket = dir.path().join("bell.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        agent.hang_bell(&socket, RINGER);
        let bell = {
            let asked = Arc::clone(&asked);
            thread::spawn(move || ring(listener.accept().unwrap().0, asked))
        };
        let limits = ExecLimits::within(LIMIT);
        assert_eq!(agent.exec(&["program"], &limits).unwrap().code, Some(3));
        asked.ended.store(false, Ordering::SeqCst);
        let late = {
            let asked = Arc::clone(&asked);
            thread::spawn(move || {
                thread::sleep(SHORT * 3);
                asked.ended.store(true, Ordering::SeqCst);
            })
        };
        assert_eq!(agent.exec(&["program"], &limits).unwrap().code, Some(3));
        late.join().unwrap();
        (asked, bell)
    }

    #[test]
    fn while_somebody_waits_in_the_guest_it_is_not_asked() {
        let (asked, _) = run(true, |mut bell, asked| {
            while asked.to_ring.load(Ordering::SeqCst) == 0 {
                thread::sleep(NOTICES);
            }
            bell.write_all(b"noi\nwaits 6\nended 6\nwaits 7\n").unwrap();
            thread::sleep(Duration::from_millis(100)); // what was on its way
            let before = asked.whether.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(800));
            let meanwhile = asked.whether.load(Ordering::SeqCst) - before;
            asked.while_manned.store(meanwhile, Ordering::SeqCst);
            asked.ended.store(true, Ordering::SeqCst);
            bell.write_all(b"ended 7\n").unwrap();
            // the second time nobody mans it
            thread::sleep(LIMIT);
        });
        assert_eq!(asked.to_ring.load(Ordering::SeqCst), 2);
        let meanwhile = asked.while_manned.load(Ordering::SeqCst);
        assert!(meanwhile <= 1, "asked {meanwhile} times");
    }

    #[test]
    fn a_bell_that_rings_falsely_or_without_end_is_not_believed() {
        for rings in
            [&b"waits 7\n"[..], b"waits 7\nended 7\n", b"ended 7\n", b"ended 6\n", b"\n", &[0xff; 4096]]
        {
            let (asked, bell) = run(true, move |bell, asked| {
                // nobody reads any more what is not believed
                bell.set_write_timeout(Some(SHORT)).unwrap();
                let flood = |time| {
                    let began = Instant::now();
                    while began.elapsed() < time {
                        let _ = (&bell).write_all(rings);
                    }
                    asked.whether.load(Ordering::SeqCst)
                };
                let before = flood(Duration::from_millis(300));
                let meanwhile = flood(Duration::from_millis(600)) - before;
                asked.while_manned.store(meanwhile, Ordering::SeqCst);
                asked.ended.store(true, Ordering::SeqCst);
                let _ = bell.shutdown(std::net::Shutdown::Both);
            });
            bell.join().unwrap();
            let meanwhile = asked.while_manned.load(Ordering::SeqCst);
            assert!((3..50).contains(&meanwhile), "{rings:?}: asked {meanwhile} times");
        }
    }

    #[test]
    fn a_guest_without_our_program_is_asked_to_ring_once() {
        let (asked, bell) = run(false, |_bell, asked| {
            thread::sleep(SHORT * 3);
            asked.ended.store(true, Ordering::SeqCst);
        });
        bell.join().unwrap();
        assert_eq!(asked.to_ring.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_socket_that_somebody_else_has_does_not_make_us_wait() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bell.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = UnixStream::connect(&socket).unwrap();
        let mut ear = Ear::default();
        assert_eq!(ear.listens(&socket), None);
        assert!(matches!(ear.state, EarState::Deaf));
        drop(first);
    }

    #[test]
    fn a_guest_that_answers_slowly_is_asked_seldom() {
        let (ms, pause) = (Duration::from_millis, between_questions);
        assert_eq!(pause(ms(1), ms(0)), OFTEN);
        assert_eq!(pause(ms(80), ms(1)), ms(10));
        assert_eq!(pause(ms(80), ms(20)), ms(160));
        assert_eq!(pause(ms(80), ms(1000)), SELDOM);
        assert_eq!(pause(ms(60_000), ms(1)), SELDOM);
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_bell_are_heard_without_panic(bytes: Vec<u8>) {
            let (mut guest, host) = UnixStream::pair().unwrap();
            guest.write_all(&bytes).unwrap();
            drop(guest);
            let mut ear = Ear { state: EarState::Listens(host), ..Ear::default() };
            let mut lines = 0;
            while let Ok(heard) = ear.next(Instant::now() + LIMIT) {
                prop_assert!(heard.is_some());
                prop_assert!(ear.line.len() <= LINE_MAX);
                lines += 1;
            }
            prop_assert!(lines <= bytes.len());
        }

        #[test]
        fn a_line_of_our_program_is_understood(pid: i64) {
            prop_assert_eq!(rung(format!("waits {pid}").as_bytes()), Rung::Waits(pid));
            prop_assert_eq!(rung(format!("ended {pid}").as_bytes()), Rung::Ended(pid));
            prop_assert_eq!(rung(format!("ended {pid} ").as_bytes()), Rung::Noise);
        }
    }
}
