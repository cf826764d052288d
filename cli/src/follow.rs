//! A running machine's events as lines, the countdown of a shutdown, and what Ctrl-C means meanwhile.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use no43_harness::exit_codes;
use no43_harness::running::{Ask, Client, Happened, Line, Runs};

use crate::context::{Context, Done, Failure, print_text};
use crate::running::{client_failure, connect};
use crate::signals::Interrupts;
use no43_harness::words::duration as seconds;

/// How often Ctrl-C and the countdown are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(200);
/// Between two lines of a countdown that is not on a terminal.
const COUNTDOWN_PAUSE: u64 = 10;
/// For the guest after Ctrl-C.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(90);

/// What following ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The machine's end.
    End,
    /// A guest that answers.
    Ready,
    /// The end of a shutdown, whether the guest obeyed or not.
    Stopped,
}

/// A machine that is followed.
pub(crate) struct Follow<'a> {
    pub(crate) runs: &'a Runs,
    pub(crate) name: &'a str,
    pub(crate) context: &'a Context,
    pub(crate) until: Until,
}

impl Follow<'_> {
    /// Follows from the run's beginning until what is asked for has happened.
    pub(crate) fn run(&self, client: Client, interrupts: &Interrupts) -> Done {
        self.go_on(client.follow(true).map_err(|error| client_failure(&error))?, interrupts)
    }

    /// Goes on with a client that follows already. Ctrl-C asks the guest to shut down, a second one detaches.
    pub(crate) fn go_on(&self, mut client: Client, interrupts: &Interrupts) -> Done {
        let mut countdown = Countdown::default();
        let mut heard = 0;
        let mut failed = None;
        loop {
            match (interrupts.count(), heard) {
                (1, 0) => {
                    heard = 1;
                    self.ask_to_stop()?;
                }
                (2.., _) => {
                    countdown.end();
                    eprintln!("  detached {0} runs on: no43 attach {0}, no43 stop {0}", self.name);
                    return Ok(exit_codes::OK);
                }
                _ => {}
            }
            let line = match client.next(TICK) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    countdown.show(self.name);
                    continue;
                }
                Err(error) => {
                    countdown.end();
                    return Err(Failure::new(
                        exit_codes::FAILED_HARNESS,
                        format!("{error}; the guest runs on if it ran: no43 ps"),
                    ));
                }
            };
            countdown.event(&line.what);
            self.show(&line)?;
            match line.what {
                Happened::Failed { cause } => failed = Some(cause),
                Happened::Done { code } => {
                    return match failed {
                        Some(cause) => Err(Failure::new(code, cause)),
                        None => Ok(code),
                    };
                }
                Happened::Ready { .. } | Happened::NotReady { .. } if self.until == Until::Ready => {
                    return Ok(exit_codes::OK);
                }
                Happened::StillRunning { .. } if self.until == Until::Stopped => {
                    return Ok(exit_codes::FAILED_GUEST);
                }
                _ => {}
            }
        }
    }

    fn ask_to_stop(&self) -> Result<(), Failure> {
        eprintln!("  stop     asking the guest to shut down; Ctrl-C again leaves it running and detaches");
        let stop = Ask::Stop { limit_s: STOP_LIMIT.as_secs(), force: false };
        connect(self.runs, self.name)?.ask(&stop).map_err(|error| client_failure(&error))
    }

    fn show(&self, line: &Line) -> Result<(), Failure> {
        if self.context.json {
            let text = serde_json::to_string(line).unwrap_or_default();
            return print_text(&format!("{text}\n"));
        }
        match words(&line.what, self.name) {
            Some((label, text, true)) => eprintln!("  {label:<8} {text}"),
            Some((label, text, false)) => print_text(&format!("  {label:<8} {text}\n"))?,
            None => {}
        }
        Ok(())
    }
}

/// Label, text, and whether it is mere progress.
pub(crate) fn words(what: &Happened, name: &str) -> Option<(&'static str, String, bool)> {
    let ms = |ms: u64| seconds(Duration::from_millis(ms));
    Some(match what {
        Happened::Note { text, warning } => (if *warning { "warning" } else { "note" }, text.clone(), true),
        Happened::Waiting { why } => ("wait", why.clone(), true),
        Happened::Card { name, address } => ("card", format!("{name}  {address}  lent"), false),
        Happened::Started { took_ms, accelerator, pid } => {
            ("start", format!("the guest runs under {accelerator} after {} (QEMU {pid})", ms(*took_ms)), true)
        }
        Happened::Adopted { pid } => ("adopted", format!("QEMU {pid} ran on without its no43"), true),
        Happened::Ready { after_ms } => {
            ("ready", format!("the guest answers after {}", ms(*after_ms)), false)
        }
        Happened::NotReady { limit_s } => (
            "warning",
            format!(
                "the guest's agent did not answer within {limit_s} s; it runs on: no43 view {name}, no43 shell {name}"
            ),
            true,
        ),
        Happened::Rebooted => ("reboot", "the guest restarted and keeps its cards".into(), false),
        Happened::Stopping { limit_s, how } => {
            ("stop", format!("the guest was asked to shut down by {how}; it has {limit_s} s"), true)
        }
        Happened::StillRunning { limit_s } => (
            "stop",
            format!(
                "the guest did not shut down within {limit_s} s and runs on\n  fix      no43 stop {name} --force   (switches it off: what it has not written is lost)"
            ),
            false,
        ),
        Happened::Paused { why } => ("paused", why.clone(), false),
        Happened::Resumed => ("resumed", "there is room again, the guest goes on".into(), false),
        Happened::Panicked { what } => ("panic", what.clone(), false),
        Happened::Ended { how, .. } => ("ended", how.clone(), false),
        Happened::GaveBack { cards, problem: None } => ("back", cards.clone(), false),
        Happened::GaveBack { problem: Some(problem), .. } => {
            ("warning", format!("not given back: {problem}"), false)
        }
        Happened::Followed | Happened::Failed { .. } | Happened::Done { .. } => return None,
    })
}

/// The seconds that a guest has left.
#[derive(Debug, Default)]
struct Countdown {
    until: Option<Instant>,
    said: Option<u64>,
}

impl Countdown {
    fn event(&mut self, what: &Happened) {
        match what {
            Happened::Stopping { limit_s, .. } => {
                self.until = Some(Instant::now() + Duration::from_secs(*limit_s));
            }
            Happened::Ended { .. } | Happened::StillRunning { .. } => {
                self.end();
                self.until = None;
            }
            _ => self.end(),
        }
    }

    fn show(&mut self, name: &str) {
        let Some(until) = self.until else { return };
        let left = until.saturating_duration_since(Instant::now()).as_secs();
        if std::io::stderr().is_terminal() {
            eprint!("\r  stop     {name}: {left:>3} s left ");
            let _ = std::io::stderr().flush();
            self.said = Some(left);
        } else if self.said.is_none_or(|said| said >= left + COUNTDOWN_PAUSE) {
            if self.said.is_some() {
                eprintln!("  stop     {name}: {left} s left");
            }
            self.said = Some(left);
        }
    }

    /// Ends a line that is being written over.
    fn end(&mut self) {
        if self.said.take().is_some() && std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}
