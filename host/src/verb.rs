//! What the half of no43 that runs as root can be asked for, by sudo or by the helper: these verbs, and nothing else.
//!
//! Whoever asks may be hostile. A request is JSON with addresses, numbers and names of its own; it holds no path and no
//! driver's name. The bus, the journal and the directories are read here, not taken from the request.

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use crate::binding::{Job, Place, VfioNode};
use crate::net::NetDevice;
use crate::process::ProcessRef;
use crate::{BindError, GivenBack, PciAddress, Roots};

/// No card has more functions than a slot and a switch below it; a request beyond this is no request.
const MOST_FUNCTIONS: usize = 64;
/// Bytes of a request; a bind of [`MOST_FUNCTIONS`] has some two thousand.
pub(crate) const LONGEST: usize = 16 << 10;
/// 8 TiB in pages of 2 MiB: more than any board takes.
const MOST_PAGES: u64 = 1 << 22;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Verb {
    /// Only asks whether root is reached this way.
    Hello,
    /// Whole cards to vfio-pci, their group nodes to the caller.
    Bind { functions: Vec<PciAddress>, lease: String, holder: String, owner: ProcessRef },
    /// Functions back to their drivers; with a lease also its pages and taps.
    Release {
        functions: Vec<PciAddress>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<String>,
    },
    /// More huge pages of 2 MiB than there are.
    Hugepages { pages: u64, lease: String, owner: ProcessRef },
    /// A tap or macvtap of the caller's, on a bridge or an interface that root has allowed.
    Network { device: NetDevice, lease: String, owner: ProcessRef },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(crate) enum Reply {
    Hello,
    Bound { nodes: Vec<VfioNode> },
    Released { back: GivenBack },
    Hugepages { pages: u64 },
    Network { name: String },
    Failed { error: BindError },
}

/// Who asks, by what the kernel or sudo says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Does what was asked for.
pub(crate) fn carry_out(
    verb: Verb,
    caller: Caller,
    place: &Place<'_>,
    bridges: &[String],
) -> Result<Reply, BindError> {
    let Caller { uid, gid } = caller;
    match verb {
        Verb::Hello => Ok(Reply::Hello),
        Verb::Bind { functions, lease, holder, owner } => {
            check_owner(&owner, caller, place.roots)?;
            let job = Job { functions, lease, holder, owner, uid, gid };
            Ok(Reply::Bound { nodes: place.bind(&job)? })
        }
        Verb::Release { functions, lease } => {
            let back = place.release(&functions, uid)?;
            place.give_back_extras(lease.as_deref(), uid)?;
            Ok(Reply::Released { back })
        }
        Verb::Hugepages { pages, lease, owner } => {
            check_owner(&owner, caller, place.roots)?;
            Ok(Reply::Hugepages { pages: place.hugepages(pages, &lease, owner, uid)? })
        }
        Verb::Network { device, lease, owner } => {
            check_owner(&owner, caller, place.roots)?;
            Ok(Reply::Network { name: place.network(&device, bridges, &lease, owner, uid)? })
        }
    }
}

/// The process that a change is made for, and after whose death anybody may undo it, is the caller's own.
fn check_owner(owner: &ProcessRef, caller: Caller, roots: &Roots) -> Result<(), BindError> {
    let alive = owner.is_alive(roots);
    let facts = std::fs::metadata(roots.proc_.join(owner.pid.to_string())).ok().filter(|_| alive);
    match caller.uid == 0 || facts.map(|found| found.uid()) == Some(caller.uid) {
        true => Ok(()),
        false => Err(BindError::Refused { why: "the process that asks is not the user's".into() }),
    }
}

/// Reads a request and checks all that can be checked without looking at the machine.
pub(crate) fn read(json: &str) -> Result<Verb, BindError> {
    let refuse = |why: String| BindError::Refused { why };
    if json.len() > LONGEST {
        return Err(refuse("the request is too long".into()));
    }
    let verb: Verb = serde_json::from_str(json).map_err(|e| refuse(format!("not a request: {e}")))?;
    match &verb {
        Verb::Hello => {}
        Verb::Bind { functions, lease, holder, .. } => {
            check_lease(lease)?;
            check_text("holder", holder)?;
            check_functions(functions)?;
        }
        Verb::Release { functions, lease: None } => check_functions(functions)?,
        Verb::Release { functions, lease: Some(lease) } => {
            check_lease(lease)?;
            if !functions.is_empty() {
                check_functions(functions)?;
            }
        }
        Verb::Hugepages { pages, lease, .. } => {
            check_lease(lease)?;
            if !(1..=MOST_PAGES).contains(pages) {
                return Err(refuse(format!("{pages} huge pages are none, or more than there can be")));
            }
        }
        Verb::Network { device, lease, .. } => {
            check_lease(lease)?;
            device.check_names().map_err(|error| refuse(error.to_string()))?;
        }
    }
    Ok(verb)
}

fn check_functions(functions: &[PciAddress]) -> Result<(), BindError> {
    let refuse = |why: String| Err(BindError::Refused { why });
    if functions.is_empty() || functions.len() > MOST_FUNCTIONS {
        return refuse(format!("{} functions are not a card", functions.len()));
    }
    let mut sorted = functions.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != functions.len() {
        return refuse("a function is named twice".into());
    }
    Ok(())
}

/// Names end up in files that others read and on terminals.
fn check_text(what: &str, text: &str) -> Result<(), BindError> {
    match text.len() <= 200 && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(BindError::Refused { why: format!("{what} is too long or not printable") }),
    }
}

/// A lease's id is part of a file's name.
fn check_lease(lease: &str) -> Result<(), BindError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match (1..=64).contains(&lease.len()) && lease.chars().all(good) {
        true => Ok(()),
        false => Err(BindError::Refused { why: "lease is not a lease's id".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn why(json: &str) -> String {
        read(json).map_or_else(|e| e.to_string(), |verb| format!("taken: {verb:?}"))
    }

    #[test]
    fn only_whole_requests_are_read() {
        assert!(why(r#"{"verb":"hello"}"#).starts_with("taken"));
        assert!(why(r#"{"verb":"release","functions":["0000:01:00.0"]}"#).starts_with("taken"));
        assert!(why(r#"{"verb":"release","functions":[],"lease":"1-2-3"}"#).starts_with("taken"));
        assert!(why(r#"{"verb":"release","functions":[],"lease":"../x"}"#).contains("not a lease"));
        assert!(why(r#"{"verb":"release","functions":[]}"#).contains("0 functions"));
        assert!(why(r#"{"verb":"release","functions":["../../etc"]}"#).contains("not a PCI address"));
        assert!(why(r#"{"verb":"release","functions":["01:00.0","0000:01:00.0"]}"#).contains("twice"));
        assert!(why(r#"{"verb":"release","functions":["01:00.0"],"root":"/tmp"}"#).contains("unknown field"));
        assert!(why(r#"{"verb":"format-disk"}"#).contains("unknown variant"));
        let owned =
            |verb: &str| why(&format!(r#"{{{verb},"lease":"a","owner":{{"pid":1,"start_time":2}}}}"#));
        assert!(owned(r#""verb":"hugepages","pages":512"#).starts_with("taken"));
        assert!(owned(r#""verb":"hugepages","pages":0"#).contains("none"));
        assert!(owned(r#""verb":"hugepages","pages":18446744073709551615"#).contains("more than"));
        let tap = |device: &str| owned(&format!(r#""verb":"network","device":{{{device}}}"#));
        assert!(tap(r#""net":"tap","bridge":"br0""#).starts_with("taken"));
        assert!(tap(r#""net":"tap","bridge":"br0"#).contains("not a request"));
        assert!(tap(r#""net":"tap","bridge":"br0","script":"/tmp/x""#).contains("unknown field"));
        assert!(tap(r#""net":"tap","bridge":"-x""#).contains("not an interface's name"));
        assert!(tap(r#""net":"tap","bridge":"../../br0""#).contains("not an interface's name"));
        assert!(tap(r#""net":"macvtap","parent":"eth0","mac":"52:54:00:12:34:56""#).starts_with("taken"));
        assert!(tap(r#""net":"macvtap","parent":"eth0","mac":"up""#).contains("not a MAC address"));
        let bind =
            |holder: &str| owned(&format!(r#""verb":"bind","functions":["01:00.0"],"holder":"{holder}""#));
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
            let _ = read(&text);
        }

        #[test]
        fn what_is_taken_has_only_names_that_are_safe(
            lease in "[-./a-z0-9]{0,8}", bridge in "[-./a-z0-9]{0,18}", pages in any::<u64>(),
        ) {
            let owner = ProcessRef { pid: 1, start_time: 2 };
            for verb in [
                Verb::Network {
                    device: NetDevice::Tap { bridge: bridge.clone() },
                    lease: lease.clone(),
                    owner,
                },
                Verb::Hugepages { pages, lease: lease.clone(), owner },
            ] {
                let json = serde_json::to_string(&verb).unwrap();
                match read(&json) {
                    Ok(Verb::Network { device, lease, .. }) => {
                        prop_assert!(!device.on().contains('/') && !lease.contains(['/', '.']));
                    }
                    Ok(Verb::Hugepages { pages, lease, .. }) => {
                        prop_assert!(pages <= MOST_PAGES && !lease.contains(['/', '.']));
                    }
                    _ => {}
                }
            }
        }
    }
}
