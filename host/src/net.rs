//! Network devices that QEMU cannot open as an ordinary user: a tap on a bridge, and a macvtap beside a card.
//!
//! Both are opened here and passed to QEMU as a descriptor, so QEMU needs no right of its own. A tap goes with its last
//! descriptor. A macvtap is a link that stays: it is named after its machine, and removed by whoever ends or buries that.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::roots::read_line;
use crate::{Roots, raw};

/// The kernel's limit for an interface's name, without the closing zero (IFNAMSIZ).
const NAME_MAX: usize = 15;
/// How our links begin; the rest is a hash of the machine's name.
const OURS: &str = "n43";
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
        /// The link's name, from [`macvtap_name`].
        name: String,
        /// The guest's address, which the link must have.
        mac: String,
    },
}

/// Why there is no such device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetError {
    /// A name that the kernel would not take, or that is not ours.
    #[error("'{name}' is not {what}")]
    Name {
        /// The name.
        name: String,
        /// What it should be.
        what: String,
    },
    /// The bridge or the interface is not there.
    #[error("this host has no {what} '{name}'; it has {there}")]
    NotThere {
        /// The name.
        name: String,
        /// A bridge, or an interface.
        what: String,
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

/// The link of a machine, the same at every start: 15 characters do not hold the machine's name.
#[must_use]
pub fn macvtap_name(machine: &str) -> String {
    // FNV-1a: stable over versions, and a collision is only two machines of one user that cannot run at once
    let hash = machine.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{OURS}{:08x}", (hash >> 16) & 0xffff_ffff)
}

impl NetDevice {
    /// Everything that can be said without changing anything.
    ///
    /// # Errors
    /// [`NetError::Name`], [`NetError::NotThere`].
    pub fn check(&self, roots: &Roots) -> Result<(), NetError> {
        match self {
            NetDevice::Tap { bridge } => {
                check_name(bridge, "an interface's name")?;
                there(roots, bridge, "bridge", |dir| dir.join("bridge").is_dir())
            }
            NetDevice::Macvtap { parent, name, mac } => {
                check_name(parent, "an interface's name")?;
                check_ours(name)?;
                check_mac(mac)?;
                there(roots, parent, "interface", Path::is_dir)
            }
        }
    }

    /// Opens it; this process is root, or has `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left behind then.
    pub fn open_here(&self, roots: &Roots) -> Result<OwnedFd, NetError> {
        self.check(roots)?;
        match self {
            NetDevice::Tap { bridge } => open_tap(bridge, roots),
            NetDevice::Macvtap { parent, name, mac } => open_macvtap(parent, name, mac, roots),
        }
    }
}

/// Opens a tap by QEMU's setuid helper, where this host has one and lets users have that bridge (`bridge.conf`).
/// `None`: there is no such helper.
pub(crate) fn open_by_bridge_helper(bridge: &str) -> Option<Result<OwnedFd, NetError>> {
    let helper = BRIDGE_HELPERS.iter().map(Path::new).find(|path| is_setuid(path))?;
    let mut command = Command::new(helper);
    command.args(["--use-vnet", "--fd=0", &format!("--br={bridge}")]);
    Some(receive_from(&mut command))
}

/// Opens a tap that root has made for this user.
pub(crate) fn open_tap_of_ours(name: &str, roots: &Roots) -> Result<OwnedFd, NetError> {
    let file = open_device(&roots.dev.join("net/tun"))?;
    raw::make_tap(file.as_fd(), name)
        .map_err(|error| NetError::System { what: format!("open {name}"), why: error.to_string() })?;
    Ok(file.into())
}

/// Removes a machine's link, if it is there. This process is root.
///
/// # Errors
/// [`NetError`].
pub fn remove_macvtap(name: &str, roots: &Roots) -> Result<(), NetError> {
    check_ours(name)?;
    if !roots.sys.join("class/net").join(name).exists() {
        return Ok(());
    }
    ip(&["link", "delete", "dev", name])
}

/// Runs a helper that sends a descriptor over its standard input.
pub(crate) fn receive_from(command: &mut Command) -> Result<OwnedFd, NetError> {
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

/// Sends an opened device to whoever asked, over our standard input.
pub(crate) fn send_to_caller(device: &OwnedFd) -> Result<(), NetError> {
    send(device.as_fd(), io::stdin().as_fd())
        .map_err(|error| NetError::System { what: "hand the device over".into(), why: error.to_string() })
}

fn send(device: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let devices = [device];
    control.push(SendAncillaryMessage::ScmRights(&devices));
    sendmsg(to, &[io::IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
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

fn open_tap(bridge: &str, roots: &Roots) -> Result<OwnedFd, NetError> {
    let file = open_device(&roots.dev.join("net/tun"))?;
    // the kernel fills the number in
    let name = raw::make_tap(file.as_fd(), &format!("{OURS}t%d"))
        .map_err(|error| NetError::System { what: "make a tap".into(), why: error.to_string() })?;
    let mtu =
        read_line(&roots.sys.join("class/net").join(bridge).join("mtu")).unwrap_or_else(|_| "1500".into());
    // the same size of packets first: a bridge takes the smallest of its ports
    ip(&["link", "set", "dev", &name, "mtu", mtu.trim()])?;
    ip(&["link", "set", "dev", &name, "master", bridge, "up"])?;
    Ok(file.into())
}

fn open_macvtap(parent: &str, name: &str, mac: &str, roots: &Roots) -> Result<OwnedFd, NetError> {
    // one that a dead run left: the machine is held by us, so nobody uses it
    remove_macvtap(name, roots)?;
    ip(&["link", "add", "link", parent, "name", name, "address", mac, "type", "macvtap", "mode", "bridge"])?;
    let opened = ip(&["link", "set", "dev", name, "up"]).and_then(|()| {
        let index = read_line(&roots.sys.join("class/net").join(name).join("ifindex"))
            .map_err(|error| NetError::System { what: format!("find {name}"), why: error.to_string() })?;
        open_device(&roots.dev.join(format!("tap{}", index.trim())))
    });
    if opened.is_err() {
        let _ = remove_macvtap(name, roots);
    }
    opened.map(OwnedFd::from)
}

fn open_device(path: &Path) -> Result<File, NetError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| NetError::System {
        what: format!("open {}", path.display()),
        why: error.to_string(),
    })
}

/// `ip` of iproute2: every Linux that has bridges has it.
fn ip(arguments: &[&str]) -> Result<(), NetError> {
    let what = || format!("ip {}", arguments.join(" "));
    let failed = |why: String| NetError::System { what: what(), why };
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn is_setuid(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.mode() & 0o4001 == 0o4001)
}

fn there(roots: &Roots, name: &str, what: &str, is: impl Fn(&Path) -> bool) -> Result<(), NetError> {
    let all = roots.sys.join("class/net");
    if is(&all.join(name)) {
        return Ok(());
    }
    let entries = std::fs::read_dir(&all).into_iter().flatten().flatten().filter(|entry| is(&entry.path()));
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo" && !name.starts_with(OURS));
    names.sort();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(NetError::NotThere { name: name.to_owned(), what: what.to_owned(), there })
}

fn check_name(name: &str, what: &str) -> Result<(), NetError> {
    let fits = (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b));
    let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
    if fits { Ok(()) } else { Err(NetError::Name { name, what: what.to_owned() }) }
}

/// Only our own links are ever removed.
fn check_ours(name: &str) -> Result<(), NetError> {
    let hash = name.strip_prefix(OURS).unwrap_or_default();
    let is_ours = hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    let what = "a link of no43's".to_owned();
    check_name(name, &what)?;
    if is_ours { Ok(()) } else { Err(NetError::Name { name: name.to_owned(), what }) }
}

fn check_mac(mac: &str) -> Result<(), NetError> {
    let pairs: Vec<&str> = mac.split(':').collect();
    let good = pairs.len() == 6
        && pairs.iter().all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
    let name: String = mac.chars().filter(|c| !c.is_control()).take(40).collect();
    if good { Ok(()) } else { Err(NetError::Name { name, what: "a MAC address".into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (_dir, roots) = host(&["br0"], &["lo", "eth0", "n43t0"]);
        let tap = |bridge: &str| NetDevice::Tap { bridge: bridge.into() };
        assert_eq!(tap("br0").check(&roots), Ok(()));
        let said = |device: &NetDevice| device.check(&roots).expect_err("not there").to_string();
        assert_eq!(said(&tap("eth0")), "this host has no bridge 'eth0'; it has br0");
        let beside = |parent: &str| NetDevice::Macvtap {
            parent: parent.into(),
            name: macvtap_name("play"),
            mac: "52:54:00:12:34:56".into(),
        };
        assert_eq!(beside("eth0").check(&roots), Ok(()));
        assert_eq!(said(&beside("eth7")), "this host has no interface 'eth7'; it has br0, eth0");
    }

    /// A request to the privileged side may hold anything.
    #[test]
    fn names_that_reach_the_kernel_are_checked() {
        let (_dir, roots) = host(&["br0"], &["eth0"]);
        for bridge in ["", "..", "../br0", "-br0", "br0 up", "a-name-of-sixteen", "br0\n"] {
            assert!(
                matches!(NetDevice::Tap { bridge: bridge.into() }.check(&roots), Err(NetError::Name { .. })),
                "{bridge}"
            );
        }
        let good = ("eth0", macvtap_name("play"), "52:54:00:12:34:56");
        for (parent, name, mac) in [
            (good.0, "eth0".to_owned(), good.2),
            (good.0, "n43eth0".to_owned(), good.2),
            (good.0, good.1.clone(), "up"),
            ("type", good.1.clone(), good.2),
        ] {
            let device = NetDevice::Macvtap { parent: parent.into(), name, mac: mac.into() };
            assert!(device.check(&roots).is_err(), "{device:?}");
        }
        assert!(remove_macvtap("eth0", &roots).is_err());
        assert_eq!(remove_macvtap(&macvtap_name("play"), &roots), Ok(()));
    }

    #[test]
    fn a_machine_has_one_link_name() {
        assert_eq!(macvtap_name("play"), macvtap_name("play"));
        assert_ne!(macvtap_name("play"), macvtap_name("work"));
        assert!(macvtap_name(&"x".repeat(300)).len() <= NAME_MAX);
        check_ours(&macvtap_name("play")).expect("ours");
    }

    #[test]
    fn a_descriptor_crosses_to_whoever_asked() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("file"), "the device").expect("a file");
        let file = File::open(dir.path().join("file")).expect("a file");
        send(file.as_fd(), theirs.as_fd()).expect("sent");
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
