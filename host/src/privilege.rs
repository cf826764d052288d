//! How the few writes that need root are reached: directly, or by `sudo -n <this program> host-verb <json>`.
//!
//! The verb trusts nothing that the caller says: it reads the bus itself, keeps its own journal, and takes its directories
//! from nowhere but its defaults.

use std::env;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binding::{Job, Limits, Place, VfioNode};
use crate::process::ProcessRef;
use crate::state::{LeaseRecord, StateDir};
use crate::{BindError, GivenBack, PciAddress, Roots};

/// The verb limits each of its own writes; this is for a sudo that never comes to it.
const SUDO_LIMIT: Duration = Duration::from_secs(300);

/// No card has more functions than a slot and a switch below it; a request beyond this is no request.
const MOST_FUNCTIONS: usize = 64;

/// A way to root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// We are root.
    Root,
    /// sudo is installed; whether it lets us is seen when it is asked.
    Sudo,
    /// Neither. Cards that are kept free from boot and whose node is ours can be used all the same.
    None,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
enum Verb {
    /// Only asks whether root is reached this way.
    Hello,
    Bind {
        functions: Vec<PciAddress>,
        lease: String,
        holder: String,
        owner: ProcessRef,
    },
    Release {
        functions: Vec<PciAddress>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
enum Reply {
    Hello,
    Bound { nodes: Vec<VfioNode> },
    Released { back: GivenBack },
    Failed { error: BindError },
}

impl Privilege {
    /// What this process has.
    pub fn detect() -> Self {
        if rustix::process::geteuid().is_root() {
            return Privilege::Root;
        }
        let path = env::var_os("PATH").unwrap_or_default();
        match env::split_paths(&path).any(|dir| dir.join("sudo").is_file()) {
            true => Privilege::Sudo,
            false => Privilege::None,
        }
    }

    /// Whether root would be reached now, without asking for a password. Changes nothing.
    pub fn works(&self) -> Result<(), String> {
        match self {
            Privilege::Root => Ok(()),
            // the very command that binds: a rule in sudoers may allow nothing else
            Privilege::Sudo => ask(&Verb::Hello).map(drop).map_err(|error| match error {
                BindError::Privilege { why } => why,
                other => other.to_string(),
            }),
            Privilege::None => Err("not root, and sudo is not installed".into()),
        }
    }

    pub(crate) fn bind(&self, lease: &LeaseRecord, place: &Place<'_>) -> Result<Vec<VfioNode>, BindError> {
        let functions: Vec<PciAddress> = lease.functions().collect();
        let (id, holder, owner) = (lease.id.clone(), lease.holder.clone(), lease.owner);
        match self {
            Privilege::Root => {
                let uid = rustix::process::geteuid().as_raw();
                let gid = rustix::process::getegid().as_raw();
                place.bind(&Job { functions, lease: id, holder, owner, uid, gid })
            }
            Privilege::Sudo => match ask_about(&Verb::Bind { functions, lease: id, holder, owner }, place)? {
                Reply::Bound { nodes } => Ok(nodes),
                other => Err(unexpected(&other)),
            },
            Privilege::None => Err(no_way()),
        }
    }

    pub(crate) fn release(
        &self,
        functions: &[PciAddress],
        place: &Place<'_>,
    ) -> Result<GivenBack, BindError> {
        match self {
            Privilege::Root => place.release(functions, rustix::process::geteuid().as_raw()),
            Privilege::Sudo => match ask_about(&Verb::Release { functions: functions.to_vec() }, place)? {
                Reply::Released { back } => Ok(back),
                other => Err(unexpected(&other)),
            },
            Privilege::None => Err(no_way()),
        }
    }
}

fn no_way() -> BindError {
    BindError::Privilege {
        why: "not root, and sudo is not installed: run no43 as root, or install sudo".into(),
    }
}

fn unexpected(reply: &Reply) -> BindError {
    match reply {
        Reply::Failed { error } => error.clone(),
        other => BindError::Privilege { why: format!("the root half answered something else: {other:?}") },
    }
}

/// The root half takes its directories from its defaults, so it can only work on this machine's own.
fn ask_about(verb: &Verb, place: &Place<'_>) -> Result<Reply, BindError> {
    match place.roots.is_real() {
        true => ask(verb),
        false => Err(BindError::Privilege { why: "sudo changes only this machine's own /sys".into() }),
    }
}

/// Runs the verb as root and reads its answer.
fn ask(verb: &Verb) -> Result<Reply, BindError> {
    let failed = |why: String| BindError::Privilege { why };
    let json = serde_json::to_string(verb).map_err(|e| failed(e.to_string()))?;
    let exe = env::current_exe().map_err(|e| failed(format!("this program's own file is not known: {e}")))?;
    let mut command = Command::new("sudo");
    command.args(["-n", "--"]).arg(&exe).args(["host-verb", &json]);
    let output = run_limited(&mut command, SUDO_LIMIT).map_err(|e| failed(format!("sudo: {e}")))?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Reply::Failed { error }) => Err(error),
        Ok(reply) => Ok(reply),
        Err(_) => Err(failed(format!(
            "{}; let this user run {} host-verb without a password (a line in /etc/sudoers.d), or run sudo -v first",
            sudo_says(&output),
            exe.display()
        ))),
    }
}

fn sudo_says(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.map_or_else(|| format!("sudo ended with {}", output.status), str::to_string)
}

/// A child that never ends is left alone: it is root's, and root's verb limits itself.
fn run_limited(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    receive.recv_timeout(limit).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("did not end within {} s", limit.as_secs())))
    })
}

/// What the hidden subcommand `host-verb` does: one JSON request in, one JSON line out.
///
/// Runs as root for a user who may be hostile: every part of the request is checked here, and nothing of the caller's
/// environment is used except the user that sudo says it is.
pub fn run_verb(json: &str) -> String {
    let reply = carry_out(json).unwrap_or_else(|error| Reply::Failed { error });
    serde_json::to_string(&reply).unwrap_or_else(|e| format!("{{\"reply\":\"unwritable\",\"why\":\"{e}\"}}"))
}

fn carry_out(json: &str) -> Result<Reply, BindError> {
    let refuse = |why: &str| BindError::Refused { why: why.into() };
    if !rustix::process::geteuid().is_root() {
        return Err(BindError::Privilege { why: "host-verb is the half of no43 that runs as root".into() });
    }
    let verb = read_verb(json)?;
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let (uid, gid) = (number("SUDO_UID").unwrap_or(0), number("SUDO_GID").unwrap_or(0));
    let (state, roots) = (StateDir::of_system(), Roots::real());
    let place = Place { state: &state, roots: &roots, limits: Limits::default() };
    match verb {
        Verb::Hello => Ok(Reply::Hello),
        Verb::Bind { functions, lease, holder, owner } => {
            if uid != 0 && owner_uid(&owner, &roots) != Some(uid) {
                return Err(refuse("the process that asks is not the user's"));
            }
            let job = Job { functions, lease, holder, owner, uid, gid };
            Ok(Reply::Bound { nodes: place.bind(&job)? })
        }
        Verb::Release { functions } => Ok(Reply::Released { back: place.release(&functions, uid)? }),
    }
}

/// Reads a request and checks all that can be checked without looking at the machine.
fn read_verb(json: &str) -> Result<Verb, BindError> {
    let refuse = |why: String| BindError::Refused { why };
    if json.len() > 16 << 10 {
        return Err(refuse("the request is too long".into()));
    }
    let verb: Verb = serde_json::from_str(json).map_err(|e| refuse(format!("not a request: {e}")))?;
    let functions = match &verb {
        Verb::Hello => return Ok(verb),
        Verb::Bind { functions, lease, holder, .. } => {
            check_text("lease", lease)?;
            check_text("holder", holder)?;
            functions
        }
        Verb::Release { functions } => functions,
    };
    if functions.is_empty() || functions.len() > MOST_FUNCTIONS {
        return Err(refuse(format!("{} functions are not a card", functions.len())));
    }
    let mut sorted = functions.clone();
    sorted.sort_unstable();
    sorted.dedup();
    match sorted.len() == functions.len() {
        true => Ok(verb),
        false => Err(refuse("a function is named twice".into())),
    }
}

/// Names end up in files that others read and on terminals.
fn check_text(what: &str, text: &str) -> Result<(), BindError> {
    match text.len() <= 200 && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(BindError::Refused { why: format!("{what} is too long or not printable") }),
    }
}

fn owner_uid(owner: &ProcessRef, roots: &Roots) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let alive = owner.is_alive(roots);
    let directory = Path::new(&roots.proc_).join(owner.pid.to_string());
    std::fs::metadata(directory).ok().filter(|_| alive).map(|found| found.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn why(json: &str) -> String {
        read_verb(json).map_or_else(|e| e.to_string(), |verb| format!("taken: {verb:?}"))
    }

    #[test]
    fn only_whole_requests_are_read() {
        assert!(why(r#"{"verb":"hello"}"#).starts_with("taken"));
        assert!(why(r#"{"verb":"release","functions":["0000:01:00.0"]}"#).starts_with("taken"));
        assert!(why(r#"{"verb":"release","functions":[]}"#).contains("0 functions"));
        assert!(why(r#"{"verb":"release","functions":["../../etc"]}"#).contains("not a PCI address"));
        assert!(why(r#"{"verb":"release","functions":["01:00.0","0000:01:00.0"]}"#).contains("twice"));
        assert!(why(r#"{"verb":"release","functions":["01:00.0"],"root":"/tmp"}"#).contains("unknown field"));
        assert!(why(r#"{"verb":"format-disk"}"#).contains("unknown variant"));
        let bind = |holder: &str| {
            why(&format!(
                r#"{{"verb":"bind","functions":["01:00.0"],"lease":"a","holder":"{holder}","owner":{{"pid":1,"start_time":2}}}}"#
            ))
        };
        assert!(bind("ci").starts_with("taken"));
        assert!(bind(r"\u001b[2J").contains("not printable"));
    }

    #[test]
    fn what_failed_as_root_is_told_to_the_user_in_full() {
        let error = BindError::NotTaken {
            address: "01:00.0".parse().unwrap(),
            now: None,
            hint: "dmesg says why".into(),
        };
        let json = serde_json::to_string(&Reply::Failed { error: error.clone() }).unwrap();
        let Ok(Reply::Failed { error: read }) = serde_json::from_str(&json) else { panic!("{json}") };
        assert_eq!(read, error);
    }

    proptest! {
        #[test]
        fn no_request_breaks_the_verb(text in ".{0,200}") {
            let _ = read_verb(&text);
        }
    }
}
