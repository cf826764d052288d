//! How the few writes that need root are reached: directly, by the helper's socket, or by
//! `sudo -n <this program> host-verb <json>`.
//!
//! The verb trusts nothing that the caller says: it reads the bus itself, keeps its own journal, and takes its directories
//! from nowhere but its defaults.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::binding::{Job, Limits, Place, VfioNode};
use crate::extras::allowed_bridges;
use crate::helper;
use crate::net::{NetDevice, NetError};
use crate::state::{LeaseRecord, StateDir};
use crate::verb::{self, Caller, Reply, Verb};
use crate::{BindError, GivenBack, PciAddress, Roots};

/// The verb limits each of its own writes; this is for a sudo that never comes to it.
const SUDO_LIMIT: Duration = Duration::from_secs(300);

/// For the helper's answer: its own writes are limited, and another bind may be under way.
const HELPER_LIMIT: Duration = SUDO_LIMIT;
/// Where root writes down which bridges guests may be put on.
pub(crate) const BRIDGES: &str = "/etc/no43/bridges";

/// A way to root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// We are root.
    Root,
    /// The helper's socket is there and open to this user.
    Helper,
    /// sudo is installed; whether it lets us is seen when it is asked.
    Sudo,
    /// Neither. Cards that are kept free from boot and whose node is ours can be used all the same.
    None,
}

impl Privilege {
    /// What this process has.
    pub fn detect() -> Self {
        if rustix::process::geteuid().is_root() {
            return Privilege::Root;
        }
        if helper::is_open(&helper::socket()) {
            return Privilege::Helper;
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
            // the very request that binds: a rule in sudoers may allow nothing else
            Privilege::Sudo | Privilege::Helper => {
                self.ask(&Verb::Hello).map(drop).map_err(|error| match error {
                    BindError::Privilege { why } => why,
                    other => other.to_string(),
                })
            }
            Privilege::None => Err("not root, no helper, and sudo is not installed".into()),
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
            Privilege::Sudo | Privilege::Helper => {
                match self.ask_about(&Verb::Bind { functions, lease: id, holder, owner }, place)? {
                    Reply::Bound { nodes } => Ok(nodes),
                    other => Err(unexpected(&other)),
                }
            }
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
            Privilege::Sudo | Privilege::Helper => {
                let verb = Verb::Release { functions: functions.to_vec(), lease: None };
                match self.ask_about(&verb, place)? {
                    Reply::Released { back } => Ok(back),
                    other => Err(unexpected(&other)),
                }
            }
            Privilege::None => Err(no_way()),
        }
    }

    /// Adds huge pages of 2 MiB to the host's pool for as long as the lease lasts. All of them or none.
    ///
    /// # Errors
    /// Too few pages in one piece, or no way to root.
    pub fn hugepages(
        &self,
        lease: &LeaseRecord,
        pages: u64,
        state: &StateDir,
        roots: &Roots,
    ) -> Result<(), BindError> {
        let verb = Verb::Hugepages { pages, lease: lease.id.clone(), owner: lease.owner };
        match self.change(verb, state, roots)? {
            Reply::Hugepages { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens what a guest's network card hangs on, for as long as the lease lasts: by QEMU's own setuid helper where that
    /// gives this user the bridge, else a device that root makes.
    ///
    /// # Errors
    /// [`NetError`], or no way to root; nothing is left behind then.
    pub(crate) fn open_network(
        &self,
        device: &NetDevice,
        lease: &LeaseRecord,
        state: &StateDir,
        roots: &Roots,
    ) -> Result<OwnedFd, NetError> {
        device.check(roots)?;
        if *self != Privilege::Root
            && let Some(Ok(opened)) = device.open_by_bridge_helper()
        {
            return Ok(opened);
        }
        let verb = Verb::Network { device: device.clone(), lease: lease.id.clone(), owner: lease.owner };
        let failed = |why: String| NetError::System { what: "make the guest's network device".into(), why };
        match self.change(verb, state, roots).map_err(|error| failed(error.to_string()))? {
            Reply::Network { name } => device.open(&name, roots),
            other => Err(failed(unexpected(&other).to_string())),
        }
    }

    /// Takes back huge pages and taps of a lease.
    ///
    /// # Errors
    /// What could not be taken back, or no way to root.
    pub fn give_back_extras(&self, lease: &str, state: &StateDir, roots: &Roots) -> Result<(), BindError> {
        let verb = Verb::Release { functions: Vec::new(), lease: Some(lease.into()) };
        self.change(verb, state, roots).map(drop)
    }

    fn change(&self, verb: Verb, state: &StateDir, roots: &Roots) -> Result<Reply, BindError> {
        let place = Place { state, roots, limits: Limits::default() };
        match self {
            Privilege::Root => {
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                verb::carry_out(verb, Caller { uid, gid }, &place, &allowed_bridges(Path::new(BRIDGES)))
            }
            Privilege::Sudo | Privilege::Helper => self.ask_about(&verb, &place),
            Privilege::None => Err(no_way()),
        }
    }

    fn ask(&self, verb: &Verb) -> Result<Reply, BindError> {
        match self {
            Privilege::Helper => ask_helper(verb),
            _ => ask_sudo(verb),
        }
    }

    /// The root half takes its directories from its defaults, so it can only work on this machine's own.
    fn ask_about(&self, verb: &Verb, place: &Place<'_>) -> Result<Reply, BindError> {
        match place.roots.is_real() {
            true => self.ask(verb),
            false => Err(BindError::Privilege { why: "root changes only this machine's own /sys".into() }),
        }
    }
}

fn no_way() -> BindError {
    BindError::Privilege {
        why: "not root, no helper, no sudo: sudo no43 host setup --helper, or run no43 as root".into(),
    }
}

fn unexpected(reply: &Reply) -> BindError {
    match reply {
        Reply::Failed { error } => error.clone(),
        other => BindError::Privilege { why: format!("the root half answered something else: {other:?}") },
    }
}

/// Sends the verb to the helper and reads its answer.
fn ask_helper(verb: &Verb) -> Result<Reply, BindError> {
    let failed = |why: String| BindError::Privilege { why };
    let json = serde_json::to_string(verb).map_err(|e| failed(e.to_string()))?;
    let socket = helper::socket();
    let said = helper::ask(&socket, &json, HELPER_LIMIT).map_err(|e| {
        let place = socket.display();
        failed(format!(
            "the helper at {place} does not answer: {e}; try: systemctl status no43-helper.socket"
        ))
    })?;
    match serde_json::from_str(&said) {
        Ok(Reply::Failed { error }) => Err(error),
        Ok(reply) => Ok(reply),
        Err(_) => Err(failed(format!("the helper said something else: {}", said.escape_debug()))),
    }
}

/// Runs the verb as root and reads its answer.
fn ask_sudo(verb: &Verb) -> Result<Reply, BindError> {
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
    if !rustix::process::geteuid().is_root() {
        return Err(BindError::Privilege { why: "host-verb is the half of no43 that runs as root".into() });
    }
    let verb = verb::read(json)?;
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let caller = Caller { uid: number("SUDO_UID").unwrap_or(0), gid: number("SUDO_GID").unwrap_or(0) };
    let (state, roots) = (StateDir::of_system(), Roots::real());
    let place = Place { state: &state, roots: &roots, limits: Limits::default() };
    verb::carry_out(verb, caller, &place, &allowed_bridges(Path::new(BRIDGES)))
}
