//! Network devices that QEMU cannot open as an ordinary user: a tap in a bridge, and a macvtap beside an interface.
//!
//! Root makes them for one lease and writes them down first (`extras`); the user opens them here and passes QEMU a
//! descriptor, so QEMU needs no right of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::roots::read_line;
use crate::{Roots, raw};

/// The kernel's limit for an interface's name, without the closing zero (IFNAMSIZ).
const NAME_MAX: usize = 15;
/// How the taps that root makes are called; a number follows.
const TAP: &str = "no43t";
/// And the macvtaps.
pub(crate) const MACVTAP: &str = "no43m";
/// A helper that opens a device answers within this.
const HELPER_LIMIT: Duration = Duration::from_secs(10);
/// Where distributions put QEMU's own helper, which opens taps for users where it is setuid.
const BRIDGE_HELPERS: &[&str] = &[
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/libexec/qemu-kvm/qemu-bridge-helper",
];

/// What a guest's network card hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "net", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetDevice {
    /// A tap in a bridge of this host: the guest is one more machine in that network.
    Tap {
        /// The bridge.
        bridge: String,
    },
    /// A link of its own beside an interface of this host: the same, without a bridge; host and guest do not see each other.
    Macvtap {
        /// The interface.
        parent: String,
        /// The guest's address, which the link must have.
        mac: String,
    },
}

/// Why there is no such device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// A name that the kernel would not take.
    #[error("'{name}' is not {what}")]
    Name {
        /// The name.
        name: String,
        /// What it should be.
        what: &'static str,
    },
    /// The bridge or the interface is not there.
    #[error("this host has no {what} '{name}'; it has {there}")]
    NotThere {
        /// The name.
        name: String,
        /// A bridge, or an interface.
        what: &'static str,
        /// What there is.
        there: String,
    },
    /// The system said no.
    #[error("failed to {what}: {why}")]
    System {
        /// What was tried.
        what: String,
        /// What it said.
        why: String,
    },
}

impl NetDevice {
    /// The bridge or interface of this host that it is on.
    pub(crate) fn on(&self) -> &str {
        match self {
            NetDevice::Tap { bridge } => bridge,
            NetDevice::Macvtap { parent, .. } => parent,
        }
    }

    /// In a log.
    pub(crate) fn words(&self) -> String {
        match self {
            NetDevice::Tap { bridge } => format!("tap on {bridge}"),
            NetDevice::Macvtap { parent, mac } => format!("macvtap {mac} on {parent}"),
        }
    }

    /// What root calls the device number `n`.
    pub(crate) fn name(&self, n: u32) -> String {
        let kind = match self {
            NetDevice::Tap { .. } => TAP,
            NetDevice::Macvtap { .. } => MACVTAP,
        };
        format!("{kind}{n}")
    }

    /// Whether its words can be given to the kernel, whoever wrote them.
    pub(crate) fn check_names(&self) -> Result<(), NetError> {
        let wrong = |name: &str, what| {
            let name = name.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(NetError::Name { name, what })
        };
        match self {
            _ if !is_interface(self.on()) => wrong(self.on(), "an interface's name"),
            NetDevice::Macvtap { mac, .. } if !is_mac(mac) => wrong(mac, "a MAC address"),
            _ => Ok(()),
        }
    }

    /// Everything that can be said without changing anything.
    ///
    /// # Errors
    /// [`NetError::Name`], [`NetError::NotThere`].
    pub fn check(&self, roots: &Roots) -> Result<(), NetError> {
        self.check_names()?;
        match self {
            NetDevice::Tap { bridge } => there(roots, bridge, "bridge", |dir| dir.join("bridge").is_dir()),
            NetDevice::Macvtap { parent, .. } => there(roots, parent, "interface", Path::is_dir),
        }
    }

    /// Opens the device of that name, which root has made for this user.
    pub(crate) fn open(&self, name: &str, roots: &Roots) -> Result<OwnedFd, NetError> {
        let path = match self {
            NetDevice::Tap { .. } => roots.dev.join("net/tun"),
            NetDevice::Macvtap { .. } => macvtap_node(name, roots),
        };
        let failed = |error: io::Error| NetError::System {
            what: format!("open {name} by {}", path.display()),
            why: error.to_string(),
        };
        let file: File = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        if matches!(self, NetDevice::Tap { .. }) {
            raw::attach_tap(file.as_fd(), name).map_err(failed)?;
        }
        Ok(file.into())
    }

    /// Opens it by QEMU's setuid helper, where this host has one and lets users have that bridge (`bridge.conf`).
    /// `None`: there is no such helper for this device.
    pub(crate) fn open_by_bridge_helper(&self) -> Option<Result<OwnedFd, NetError>> {
        let NetDevice::Tap { bridge } = self else { return None };
        let helper = BRIDGE_HELPERS.iter().map(Path::new).find(|path| is_setuid(path))?;
        let mut command = Command::new(helper);
        command.args(["--use-vnet", "--fd=0", &format!("--br={bridge}")]);
        Some(receive_from(&mut command))
    }
}

/// The node of a macvtap, which the kernel makes with the link.
pub(crate) fn macvtap_node(name: &str, roots: &Roots) -> PathBuf {
    let index = read_line(&roots.sys.join("class/net").join(name).join("ifindex")).unwrap_or_default();
    roots.dev.join(format!("tap{}", index.trim()))
}

/// What the kernel takes as an interface's name, and a little less: no name of ours is an option or a path.
#[must_use]
pub fn is_interface(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with(['.', '-'])
}

fn is_mac(mac: &str) -> bool {
    let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    mac.split(':').count() == 6 && mac.split(':').all(pair)
}

/// Runs a helper that sends a descriptor over its standard input.
fn receive_from(command: &mut Command) -> Result<OwnedFd, NetError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed =
        |why: String| NetError::System { what: format!("open the network device by {program}"), why };
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    let child = command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    // `Command` still holds its end of the pair; without it the end of the helper is the end of the socket
    command.stdin(Stdio::null());
    let _ = ours.set_read_timeout(Some(HELPER_LIMIT));
    let received = receive(&ours);
    drop(ours);
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Err(error) => Err(failed(error.to_string())),
        Ok(None) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
            Err(failed(last.map_or_else(|| format!("it ended with {}", output.status), str::to_owned)))
        }
    }
}

fn receive(from: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut devices = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(devices) => Some(devices),
        _ => None,
    });
    Ok(devices.next().and_then(|mut devices| devices.next()))
}

fn is_setuid(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.mode() & 0o4001 == 0o4001)
}

fn there(roots: &Roots, name: &str, what: &'static str, is: impl Fn(&Path) -> bool) -> Result<(), NetError> {
    let all = roots.sys.join("class/net");
    if is(&all.join(name)) {
        return Ok(());
    }
    let entries = std::fs::read_dir(&all).into_iter().flatten().flatten().filter(|entry| is(&entry.path()));
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo" && !name.starts_with(TAP) && !name.starts_with(MACVTAP));
    names.sort();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(NetError::NotThere { name: name.to_owned(), what, there })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    fn host(bridges: &[&str], others: &[&str]) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(dir.path());
        let net = roots.sys.join("class/net");
        for bridge in bridges {
            std::fs::create_dir_all(net.join(bridge).join("bridge")).expect("sysfs");
        }
        for other in others {
            std::fs::create_dir_all(net.join(other)).expect("sysfs");
        }
        (dir, roots)
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let (_dir, roots) = host(&["br0"], &["lo", "eth0", "no43t0"]);
        let tap = |bridge: &str| NetDevice::Tap { bridge: bridge.into() };
        assert_eq!(tap("br0").check(&roots), Ok(()));
        let said = |device: &NetDevice| device.check(&roots).expect_err("not there").to_string();
        assert_eq!(said(&tap("eth0")), "this host has no bridge 'eth0'; it has br0");
        let mac = "52:54:00:12:34:56";
        let beside = |parent: &str| NetDevice::Macvtap { parent: parent.into(), mac: mac.into() };
        assert_eq!(beside("eth0").check(&roots), Ok(()));
        assert_eq!(said(&beside("eth7")), "this host has no interface 'eth7'; it has br0, eth0");
    }

    #[test]
    fn devices_have_names_of_their_kind() {
        assert_eq!(NetDevice::Tap { bridge: "br0".into() }.name(7), "no43t7");
        let macvtap = NetDevice::Macvtap { parent: "eth0".into(), mac: "52:54:00:12:34:56".into() };
        assert_eq!(macvtap.name(999), "no43m999");
        assert!(is_interface(&macvtap.name(999)));
    }

    #[test]
    fn a_descriptor_comes_from_whoever_was_asked() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("file"), "the device").expect("a file");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let file = File::open(dir.path().join("file")).expect("a file");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let devices = [file.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&devices));
        sendmsg(&theirs, &[io::IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).expect("sent");
        let mut received = File::from(receive(&ours).expect("received").expect("a descriptor"));
        let mut text = String::new();
        io::Read::read_to_string(&mut received, &mut text).expect("read");
        assert_eq!(text, "the device");
        drop(theirs);
        assert!(receive(&ours).expect("the end").is_none());
    }

    #[test]
    fn a_helper_that_sends_nothing_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'access denied by acl file' >&2; exit 1"]);
        let error = receive_from(&mut command).expect_err("nothing was sent").to_string();
        assert_eq!(error, "failed to open the network device by sh: access denied by acl file");
    }
}
