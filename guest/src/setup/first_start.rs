//! What an instance is given at its first start: the recipe's own password, name and keys, which no image holds.
//!
//! `no43-guest first-start` reads a [`FirstStart`] from its standard input (the guest agent's `input-data`), or from
//! a file that it removes afterwards (`--from FILE`). None of it is ever an argument. It prints [`FirstStarted`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::check::computer_name;
use crate::protocol::{LIST_LIMIT, MESSAGE_LIMIT, MessageError, bound_text};

/// Most bytes of a request.
pub const REQUEST_LIMIT: usize = 64 << 10;

/// A text that is not shown by `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The team that a computer registers with by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParsecTeam {
    /// The team's id, which is no secret.
    pub id: String,
    /// The computer key.
    pub key: Secret,
}

/// What is given. A field that is not there stays as it is in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirstStart {
    /// [`SETUP_VERSION`](super::SETUP_VERSION).
    pub version: u32,
    /// The user whose password is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// The computer's name; counts after a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_name: Option<String>,
    /// Product key of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_key: Option<Secret>,
    /// Whether that user is logged on at each start; needs `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autologon: Option<bool>,
    /// Parsec is installed for this team; the image has the installer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parsec_team: Option<ParsecTeam>,
}

/// What was done with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FirstStarted {
    /// [`SETUP_VERSION`](super::SETUP_VERSION) of the program.
    pub version: u32,
    /// One entry per given field, in the order of the fields.
    pub steps: Vec<Step>,
    /// The guest must restart before all of it counts.
    pub restart_needed: bool,
}

/// What became of one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Name of the field, as `password`.
    pub field: String,
    /// Whether it is so now.
    pub done: bool,
    /// Error number of the system, if not.
    pub code: Option<i64>,
    /// Why not.
    pub reason: Option<String>,
}

impl FirstStart {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// In words that hold nothing of the request's secrets.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > REQUEST_LIMIT {
            return Err(format!("the request has {} bytes, more than {REQUEST_LIMIT}", bytes.len()));
        }
        // The parser's own words may quote a secret, so only the place is said.
        let request: Self = serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "the request is no JSON of the known form: line {}, column {}",
                error.line(),
                error.column()
            )
        })?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 || self.version > super::SETUP_VERSION {
            let known = super::SETUP_VERSION;
            return Err(format!("the request has version {}, this program knows {known}", self.version));
        }
        if self.password.is_some() && self.user.is_none() {
            return Err("a password without the user that it is for".into());
        }
        if self.autologon == Some(true) && self.password.is_none() {
            return Err("autologon needs the password, too".into());
        }
        let texts = [self.user.as_deref(), self.password.as_ref().map(|p| p.0.as_str())];
        if texts.into_iter().flatten().any(|text| text.is_empty() || text.contains(['\0', '\n', '\r'])) {
            return Err("user or password is empty, or holds a line break or a NUL character".into());
        }
        if self.product_key.as_ref().is_some_and(|key| !is_product_key(&key.0)) {
            return Err("the product key is not five groups of five letters and digits".into());
        }
        let team = self.parsec_team.as_ref();
        if team.is_some_and(|team| ![&team.id, &team.key.0].into_iter().all(|word| is_team_word(word))) {
            return Err(
                "Parsec's team id or key has other characters than letters, digits and any of ._~=+-".into(),
            );
        }
        self.computer_name.as_deref().map_or(Ok(()), computer_name)
    }
}

/// What can stand in the argument list of an installer that takes it apart by itself: no quotes, no spaces, no '/'.
fn is_team_word(word: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._~=+-".contains(&byte);
    (1..=256).contains(&word.len()) && word.bytes().all(fits)
}

fn is_product_key(key: &str) -> bool {
    let groups: Vec<&str> = key.split('-').collect();
    groups.len() == 5 && groups.iter().all(|g| g.len() == 5 && g.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Reads what `no43-guest first-start` printed.
///
/// # Errors
/// If it is too long or no such answer.
pub fn parse_first_started(bytes: &[u8]) -> Result<FirstStarted, MessageError> {
    if bytes.len() > MESSAGE_LIMIT {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    let mut answer: FirstStarted = serde_json::from_slice(bytes).map_err(|error| {
        let mut reason = error.to_string();
        bound_text(&mut reason);
        MessageError::Malformed { reason }
    })?;
    answer.steps.truncate(LIST_LIMIT);
    for step in &mut answer.steps {
        bound_text(&mut step.field);
        step.reason.iter_mut().for_each(bound_text);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> String {
        FirstStart::parse(text.as_bytes()).map_or_else(|error| error, |request| format!("{request:?}"))
    }

    #[test]
    fn requests_are_read_and_their_secrets_never_said() {
        insta::assert_snapshot!(parse(r#"{"version":1,"user":"Élodie","password":"gé<>&\"'%^","computer_name":"PC-1","autologon":true}"#), @r#"FirstStart { version: 1, user: Some("Élodie"), password: Some(Secret(…)), computer_name: Some("PC-1"), product_key: None, autologon: Some(true), parsec_team: None }"#);
        insta::assert_snapshot!(parse(r#"{"version":1,"password":["hunter2"]}"#), @"the request is no JSON of the known form: line 1, column 24");
        insta::assert_snapshot!(parse(r#"{"version":1,"password":"hunter2"}"#), @"a password without the user that it is for");
        insta::assert_snapshot!(parse(r#"{"version":1,"product_key":"hunter2"}"#), @"the product key is not five groups of five letters and digits");
        insta::assert_snapshot!(parse(r#"{"version":1,"parsec_team":{"id":"1or58","key":"tapi_1or58.YmM3"}}"#), @r#"FirstStart { version: 1, user: None, password: None, computer_name: None, product_key: None, autologon: None, parsec_team: Some(ParsecTeam { id: "1or58", key: Secret(…) }) }"#);
        for team in [r#"{"id":"a b","key":"k"}"#, r#"{"id":"a","key":"k /x"}"#, r#"{"id":"a","key":""}"#] {
            let said = parse(&format!(r#"{{"version":1,"parsec_team":{team}}}"#));
            assert!(
                said.starts_with("Parsec's team id or key has other characters") && !said.contains("/x"),
                "{said}"
            );
        }
        insta::assert_snapshot!(parse(r#"{"version":9}"#), @"the request has version 9, this program knows 1");
        insta::assert_snapshot!(parse(r#"{"version":1,"user":"a","autologon":true}"#), @"autologon needs the password, too");
        insta::assert_snapshot!(parse(r#"{"version":1,"computer_name":"a b"}"#), @"'a b' is no computer name: 1 to 15 letters, digits, hyphens, not digits alone");
    }

    #[test]
    fn an_answer_is_bounded() {
        let long = "x".repeat(5000);
        let answer = format!(r#"{{"steps":[{{"field":"{long}","reason":"a\u0007b"}}]}}"#);
        let answer = parse_first_started(answer.as_bytes()).unwrap();
        assert!(answer.steps[0].field.len() <= 1024 && !answer.steps[0].done);
        assert_eq!(answer.steps[0].reason.as_deref(), Some("a\u{fffd}b"));
        assert!(parse_first_started(b"no JSON").is_err());
    }

    proptest! {
        #[test]
        fn any_request_and_any_answer_are_read(text in "(\\{|\\}|\\[|\\]|:|,|\"(version|steps|field|reason|done|user|password|product_key|parsec_team|id|key)\"|1|true|null|\"[a-zé\\x00-\\x1f-]{0,8}\"){0,30}") {
            if let Err(reason) = FirstStart::parse(text.as_bytes()) {
                prop_assert!(reason.chars().count() < 400);
            }
            if let Ok(answer) = parse_first_started(text.as_bytes()) {
                prop_assert!(answer.steps.len() <= LIST_LIMIT);
            }
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (FirstStart::parse(&bytes), parse_first_started(&bytes));
        }
    }
}
