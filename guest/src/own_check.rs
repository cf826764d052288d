//! A check of a recipe's own (`[[check]]`) in a Windows guest: what the harness asks for, in a file, and the answer.
//!
//! No command line carries the command, so nothing has to be quoted. Linux guests need none of this: there the agent
//! starts `env` and `runuser`.

use serde::{Deserialize, Serialize};

/// What is to be run, as JSON in the file that `no43-guest check` is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckOrder {
    /// Program and arguments. A program with a folder in its name is looked for from [`CheckOrder::folder`], another one by Windows.
    pub run: Vec<String>,
    /// Where it starts.
    pub folder: String,
    /// PCI address of the card in the guest, for the variable [`CARD_VARIABLE`].
    pub card: Option<String>,
    /// In the session of whoever is logged on, instead of that of services.
    pub as_user: bool,
    /// When it is ended.
    pub limit_seconds: u64,
}

/// Tells a check which card it is about.
pub const CARD_VARIABLE: &str = "NO43_CARD";

/// What handing over to a session may take beyond the check's own limit: somebody's logging on, and four calls of the scheduler.
pub const HAND_OVER_SECONDS: u64 = LOG_ON_SECONDS + 130;

/// How long whoever is to be logged on is waited for: Windows does that beside its services, so the agent may be there before.
pub const LOG_ON_SECONDS: u64 = 60;

/// How the command of a check ended: the first line of the answer. The rest of it is what the command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEnd {
    /// With this exit code.
    Ended(i64),
    /// It did not end within its limit, and was ended with all that it had started.
    Overdue,
    /// It was not run; why.
    NotRun(String),
}

impl CheckEnd {
    /// The whole answer.
    pub fn answer(&self, output: &[u8]) -> Vec<u8> {
        let line = match self {
            Self::Ended(code) => format!("ended {code}\n"),
            Self::Overdue => "overdue\n".to_owned(),
            Self::NotRun(reason) => format!("not-run {}\n", reason.replace(['\r', '\n'], " ")),
        };
        [line.as_bytes(), output].concat()
    }

    /// Takes an answer apart, the command's output last; `None`: it is no answer. The bytes are the guest's.
    pub fn parse(answer: &[u8]) -> Option<(Self, &[u8])> {
        let end = answer.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&answer[..end]).ok()?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let how = match word {
            "ended" => Self::Ended(rest.parse().ok()?),
            "overdue" if rest.is_empty() => Self::Overdue,
            "not-run" => Self::NotRun(rest.to_owned()),
            _ => return None,
        };
        Some((how, &answer[end + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_says_how_it_ended_and_keeps_the_output() {
        let reason = CheckEnd::NotRun("a\nb".into()).answer(b"");
        assert_eq!(reason, b"not-run a b\n");
        for how in
            [CheckEnd::Ended(3_221_225_477), CheckEnd::Overdue, CheckEnd::NotRun("nobody is there".into())]
        {
            let answer = how.answer(b"1\n2\xff");
            assert_eq!(CheckEnd::parse(&answer), Some((how, &b"1\n2\xff"[..])));
        }
        for wrong in [&b""[..], b"ended 3", b"ended x\n", b"ended\n", b"overdue 3\n", b"done\n", b"\xff\n"] {
            assert_eq!(CheckEnd::parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes: Vec<u8>, word in "(ended|overdue|not-run)?[ -~]{0,20}\n?") {
            let _ = CheckEnd::parse(&bytes);
            if let Some((how, output)) = CheckEnd::parse(word.as_bytes()) {
                prop_assert!(output.is_empty());
                // said again, it is the same
                let again = how.answer(b"");
                prop_assert_eq!(CheckEnd::parse(&again).map(|(how, _)| how), Some(how));
            }
        }
    }
}
