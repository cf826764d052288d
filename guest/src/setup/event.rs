//! What the guest program tells while it sets a guest up: one line per event, on COM1 and on the set-up port.
//!
//! A line is [`MARKER`], a JSON object in ASCII, and a line feed. Firmware, boot loaders and kernels write to COM1,
//! too, so a reader looks for the marker anywhere in a line and takes everything else as foreign. A line can be lost
//! or damaged; `seq` tells. The same event on two channels has the same `run` and `seq`.

use serde::{Deserialize, Serialize};

use crate::protocol::{bound_list, bound_text};

/// What our lines begin with.
pub const MARKER: &str = "@no43 ";

/// Most bytes of one line, marker and line feed included.
pub const LINE_LIMIT: usize = 8192;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts the starts of the program for this plan, from 1; 0 where there is no plan.
    #[serde(default)]
    pub run: u32,
    /// Counts the events of that start, from 1.
    #[serde(default)]
    pub seq: u32,
    /// Milliseconds since that start.
    #[serde(default)]
    pub at_ms: u64,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The program began, or goes on after a restart.
    Started {
        /// [`SetupPlan::id`](super::SetupPlan::id).
        plan: String,
        /// Version of the program.
        program: String,
        /// How many actions the plan has.
        actions: u32,
        /// The action that it begins with, from 0.
        from: u32,
    },
    /// An action begins.
    Begun {
        /// Number of the action, from 0.
        action: u32,
        /// Its name.
        name: String,
    },
    /// An action ended well, or was refused.
    Ended {
        /// Number of the action, from 0.
        action: u32,
        /// Its name.
        name: String,
        /// How.
        outcome: Outcome,
        /// Exit code, where a program ran.
        #[serde(default)]
        code: Option<i64>,
        /// Milliseconds that it took.
        #[serde(default)]
        ms: u64,
        /// Why it was refused, or what is worth knowing.
        #[serde(default)]
        note: Option<String>,
    },
    /// The guest restarts now, and the program goes on afterwards.
    Restarting {
        /// Number of the next action.
        action: u32,
        /// Who wants it.
        reason: String,
    },
    /// The plan ended with an error; nothing more is done.
    Failed {
        /// Number of the action, unless the plan itself is at fault.
        #[serde(default)]
        action: Option<u32>,
        /// Its name.
        #[serde(default)]
        name: String,
        /// Which kind of error.
        #[serde(default)]
        cause: Cause,
        /// Exit code or error number of the system.
        #[serde(default)]
        code: Option<i64>,
        /// What was wrong.
        text: String,
        /// The last lines of the action's log.
        #[serde(default)]
        log: Vec<String>,
    },
    /// The plan ended well.
    Finished {
        /// Milliseconds in all runs together, without the restarts.
        #[serde(default)]
        ms: u64,
        /// Restarts in between.
        #[serde(default)]
        restarts: u32,
        /// Actions that were refused; above 0 only in the stand-in for Windows Setup.
        #[serde(default)]
        refused: u32,
        /// `ImageState` of Windows; `IMAGE_STATE_COMPLETE` when it is as it should be.
        #[serde(default)]
        image_state: Option<String>,
    },
    /// Windows Setup itself failed and ran its error handler.
    SetupFailed {
        /// The ends of its logs.
        #[serde(default)]
        logs: Vec<LogTail>,
    },
    /// Errors in the logs of Windows Setup, while it runs: it may go on all the same.
    SetupLog {
        /// Path in the guest.
        file: String,
        /// Oldest first.
        #[serde(default)]
        lines: Vec<String>,
    },
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done.
    Done,
    /// It was so before.
    Unchanged,
    /// Done; counts after a restart.
    RestartNeeded,
    /// Not done: this build cannot ([`SUPPORT`](super::SUPPORT)).
    Refused,
    /// A word of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Which kind of error ended a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The plan cannot be read, or does not fit the program.
    Plan,
    /// A source is not on the set-up disk, or the disk is gone.
    Source,
    /// A program ended with a code that means failure.
    ExitCode,
    /// A program could not be started.
    NotStarted,
    /// It took longer than its limit.
    TimedOut,
    /// What was set is not so afterwards.
    NotSo,
    /// The guest died in the same action again and again.
    KeepsDying,
    /// More restarts than a plan may have.
    TooManyRestarts,
    /// This build does not do such actions.
    Refused,
    /// The disk is full.
    DiskFull,
    /// The system refused.
    #[default]
    #[serde(other)]
    System,
}

/// The end of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogTail {
    /// Path in the guest.
    pub file: String,
    /// Its last lines, oldest first.
    pub lines: Vec<String>,
}

/// Why a marked line was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedLine {
    /// The parser's words.
    pub reason: String,
}

impl Event {
    /// The line that is sent: ASCII, at most [`LINE_LIMIT`] bytes. Logs are shortened until it fits, oldest first.
    #[must_use]
    pub fn line(&self) -> String {
        let mut event = self.clone();
        loop {
            let line = format!("{MARKER}{}\n", ascii_json(&event));
            if line.len() <= LINE_LIMIT || !event.what.shorten() {
                return line;
            }
        }
    }

    /// Looks for an event in one line of a channel; `None` if the line is not ours.
    /// Texts are bounded and free of control characters, because the guest is hostile.
    #[must_use]
    pub fn find(line: &[u8]) -> Option<Result<Self, DamagedLine>> {
        let at = line.windows(MARKER.len()).position(|window| window == MARKER.as_bytes())?;
        let json = &line[at + MARKER.len()..];
        if json.len() > LINE_LIMIT {
            return Some(Err(DamagedLine {
                reason: format!("{} bytes, more than {LINE_LIMIT}", json.len()),
            }));
        }
        // What stands behind the object is foreign, as a kernel's line that began before ours ended.
        let mut values = serde_json::Deserializer::from_slice(json).into_iter::<Self>();
        Some(match values.next() {
            Some(Ok(mut event)) => {
                event.what.bound();
                Ok(event)
            }
            Some(Err(error)) => {
                let mut reason = error.to_string();
                bound_text(&mut reason);
                Err(DamagedLine { reason })
            }
            None => Err(DamagedLine { reason: "nothing after the marker".into() }),
        })
    }
}

impl What {
    /// Drops something that is not vital; `false` if there is nothing left to drop.
    fn shorten(&mut self) -> bool {
        match self {
            Self::Failed { log, .. } if !log.is_empty() => {
                log.remove(0);
                true
            }
            Self::SetupFailed { logs } => {
                logs.retain(|log| !log.lines.is_empty());
                logs.iter_mut().max_by_key(|log| log.lines.len()).map(|log| log.lines.remove(0)).is_some()
            }
            Self::SetupLog { lines, .. } if lines.len() > 1 => {
                lines.remove(0);
                true
            }
            Self::Failed { text, .. } | Self::Restarting { reason: text, .. } => halve(text),
            Self::Ended { note: Some(note), .. } => halve(note),
            Self::Begun { name, .. } | Self::Ended { name, .. } => halve(name),
            Self::Started { plan, .. } => halve(plan),
            _ => false,
        }
    }

    fn bound(&mut self) {
        match self {
            Self::Started { plan, program, .. } => [plan, program].into_iter().for_each(bound_text),
            Self::Begun { name, .. } => bound_text(name),
            Self::Ended { name, note, .. } => {
                bound_text(name);
                note.iter_mut().for_each(bound_text);
            }
            Self::Restarting { reason, .. } => bound_text(reason),
            Self::Failed { name, text, log, .. } => {
                [name, text].into_iter().for_each(bound_text);
                bound_list(log);
            }
            Self::Finished { image_state, .. } => image_state.iter_mut().for_each(bound_text),
            Self::SetupFailed { logs } => {
                logs.truncate(crate::protocol::LIST_LIMIT);
                for log in logs {
                    bound_text(&mut log.file);
                    bound_list(&mut log.lines);
                }
            }
            Self::SetupLog { file, lines } => {
                bound_text(file);
                bound_list(lines);
            }
            Self::Unknown => {}
        }
    }
}

fn halve(text: &mut String) -> bool {
    let keep = text.chars().count() / 2;
    *text = text.chars().take(keep).collect();
    keep > 0
}

/// JSON with every character above ASCII as `\u…`: serial lines and what reads them are not always clean.
fn ascii_json(event: &Event) -> String {
    let json = serde_json::to_string(event).unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0_u16; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(what: What) -> Event {
        Event { run: 2, seq: 7, at_ms: 1500, what }
    }

    fn failed(text: &str, lines: usize) -> Event {
        let log = (0..lines).map(|n| format!("line {n}: é \u{1f600} {}", "x".repeat(50))).collect();
        event(What::Failed {
            action: Some(3),
            name: "agent d'Élodie".into(),
            cause: Cause::ExitCode,
            code: Some(1603),
            text: text.into(),
            log,
        })
    }

    #[test]
    fn a_line_is_ascii_and_comes_back_equal() {
        let sent = failed("ended with 1603", 2);
        insta::assert_snapshot!(sent.line().replace("xxxxxxxxxx", ""), @r#"@no43 {"run":2,"seq":7,"at_ms":1500,"what":{"event":"failed","action":3,"name":"agent d'\u00c9lodie","cause":"exit-code","code":1603,"text":"ended with 1603","log":["line 0: \u00e9 \ud83d\ude00 ","line 1: \u00e9 \ud83d\ude00 "]}}"#);
        assert_eq!(Event::find(sent.line().as_bytes()), Some(Ok(sent)));
    }

    #[test]
    fn a_line_in_the_middle_of_foreign_text_is_found() {
        let begun = event(What::Begun { action: 0, name: "agent".into() });
        let noise = format!("[    1.2] usb 1-1: new{}[    1.3] more", begun.line().trim_end());
        assert_eq!(Event::find(noise.as_bytes()), Some(Ok(begun)));
        assert_eq!(Event::find(b"BdsDxe: starting Boot0001"), None);
        assert!(matches!(Event::find(b"@no43 {\"run\":1,\"wh[ 2.0] usb"), Some(Err(_))));
        assert!(matches!(Event::find(b"@no43 "), Some(Err(_))));
    }

    #[test]
    fn a_long_log_is_cut_at_its_beginning() {
        let sent = failed("x", 1000);
        let line = sent.line();
        assert!(line.len() <= LINE_LIMIT && line.contains("line 999") && !line.contains("line 0:"));
        assert!(failed(&"é".repeat(9000), 0).line().len() <= LINE_LIMIT);
    }

    #[test]
    fn words_of_a_later_version_are_unknown() {
        let line = br#"@no43 {"run":1,"seq":1,"at_ms":0,"what":{"event":"dreamt","of":"sheep"}}"#;
        assert_eq!(Event::find(line).unwrap().unwrap().what, What::Unknown);
        let line = br#"@no43 {"what":{"event":"ended","action":1,"name":"x","outcome":"half-done"}}"#;
        let What::Ended { outcome, .. } = Event::find(line).unwrap().unwrap().what else { panic!() };
        assert_eq!(outcome, Outcome::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(head in "\\PC{0,20}", json in "\\PC{0,60}") {
            let _ = Event::find(format!("{head}{MARKER}{json}").as_bytes());
        }

        #[test]
        fn any_name_comes_back(name in "\\PC{0,200}") {
            let sent = event(What::Begun { action: 1, name });
            prop_assert_eq!(Event::find(sent.line().as_bytes()), Some(Ok(sent)));
        }
    }
}
