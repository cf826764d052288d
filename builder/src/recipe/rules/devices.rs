//! The rules of disks, shares, USB devices, sound and ports: what an instance's machine has beside its cards.

use std::path::PathBuf;

use super::{At, Rules};
use crate::diagnostic::Kind;
use crate::plan::{AudioPlan, DevicesPlan, DiskPlan, ForwardPlan, NetworkPlan, SharePlan, UsbPlan};
use crate::recipe::tree::{Node, Value};
use crate::recipe::units;

/// A file system with a journal needs more than this.
const MIN_DISK: u64 = 16 << 20;
/// What switches a shared keyboard over where the recipe does not say.
const TOGGLE: &str = "ctrl-ctrl";
/// QEMU's words for such keys.
const TOGGLES: &[&str] =
    &["ctrl-ctrl", "alt-alt", "shift-shift", "meta-meta", "scrolllock", "ctrl-scrolllock"];

impl Rules<'_> {
    pub(super) fn devices(&mut self, root: &At<'_>, network: &NetworkPlan) -> DevicesPlan {
        let at = root.child("network");
        DevicesPlan {
            disks: self.disks(root),
            shares: self.shares(root),
            usb: root.items("usb").iter().filter_map(|usb| self.usb(usb)).collect(),
            audio: match root.child("audio").as_ref().map(|audio| audio.text("to")) {
                Some("pipewire") => AudioPlan::Pipewire,
                Some("pulse") => AudioPlan::Pulse,
                Some("none") => AudioPlan::None,
                _ => AudioPlan::Card,
            },
            forwards: at.as_ref().map(|at| self.forwards(at, network)).unwrap_or_default(),
            mac: at.as_ref().and_then(|at| self.mac(at)),
        }
    }

    /// How the guest reaches the world.
    pub(super) fn network(&mut self, root: &At<'_>) -> NetworkPlan {
        let Some(at) = root.child("network") else { return NetworkPlan::User };
        let mode = at.text("mode");
        for (key, of) in [("bridge", "bridge"), ("parent", "macvtap")] {
            if at.node(key).is_some() && mode != of {
                let what = format!("'{key}' is only used with mode = \"{of}\"");
                self.push(
                    at.spot(key)
                        .problem(Kind::Conflict, what)
                        .fix(format!("set network.mode = \"{of}\", or remove it")),
                );
            }
        }
        let mut named = |key: &str, example: &str| match at.owned(key) {
            Some(name) if no43_host::net::is_interface(&name) => name,
            Some(name) => {
                let what = format!("'{name}' is no interface's name");
                self.push(
                    at.spot(key)
                        .problem(Kind::BadValue, what)
                        .fix("write it as ip link shows it, at most 15 characters"),
                );
                name
            }
            None => {
                let what = format!("network.mode = \"{mode}\" needs '{key}'");
                self.push(
                    at.spot("mode").problem(Kind::Missing, what).fix(format!("add {key} = \"{example}\"")),
                );
                String::new()
            }
        };
        match mode {
            "none" => NetworkPlan::None,
            "bridge" => NetworkPlan::Bridge(named("bridge", "br0")),
            "macvtap" => NetworkPlan::Macvtap(named("parent", "enp3s0")),
            _ => NetworkPlan::User,
        }
    }

    fn disks(&mut self, root: &At<'_>) -> Vec<DiskPlan> {
        let mut disks: Vec<DiskPlan> = Vec::new();
        for at in root.items("disk") {
            let Some(disk) = self.disk(&at) else { continue };
            if disks.iter().any(|other| other.name == disk.name) {
                let problem =
                    at.spot("name").problem(Kind::Conflict, format!("there are two disks '{}'", disk.name));
                self.push(problem.fix("give each a name of its own"));
            }
            disks.push(disk);
        }
        disks
    }

    fn disk(&mut self, at: &At<'_>) -> Option<DiskPlan> {
        let Some(name) = at.owned("name") else {
            let problem = at.here().problem(Kind::Missing, "the disk's name is missing");
            self.push(problem.fix("add name = \"games\": the disk is kept by it"));
            return None;
        };
        let path = at.host_path("path");
        let bytes = at.opt_text("size").and_then(|text| units::size(text).ok());
        match (&path, bytes) {
            (None, None) => {
                let problem = at.here().problem(Kind::Missing, "the disk has no size");
                self.push(problem.fix("add size = \"100 GiB\"; only what is written takes room"));
            }
            (Some(_), Some(_)) => {
                let problem =
                    at.spot("size").problem(Kind::Conflict, "a disk of your own has its size already");
                self.push(problem.fix("remove 'size', or remove 'path'"));
            }
            (None, Some(bytes)) if bytes < MIN_DISK || !bytes.is_multiple_of(1 << 20) => {
                let what = format!("{} is not a whole number of MiB from 16 MiB on", units::show_size(bytes));
                self.push(at.spot("size").problem(Kind::BadValue, what).fix("write a larger one"));
            }
            _ => {}
        }
        let keep = at.bool("keep");
        if !keep && path.is_none() {
            let problem = at.here().problem(Kind::Missing, "it does not say that the disk is kept");
            self.push(
                problem.fix("add keep = true: a disk that is thrown away has no use beside the system's"),
            );
        }
        Some(DiskPlan { name, bytes, keep, path })
    }

    fn shares(&mut self, root: &At<'_>) -> Vec<SharePlan> {
        let items = root.items("share");
        let mut shares: Vec<SharePlan> = Vec::new();
        for at in &items {
            let (Some(name), Some(path)) = (at.owned("name"), at.host_path("path")) else {
                let problem = at.here().problem(Kind::Missing, "a share has a name and a path");
                self.push(problem.fix("add name = \"music\" and path = \"~/Music\""));
                continue;
            };
            if shares.iter().any(|other| other.name == name) || name.len() > 31 || name.contains(['_', '.']) {
                let problem =
                    at.spot("name").problem(Kind::BadValue, format!("'{name}' cannot be this share's name"));
                self.push(problem.fix("use each name once: letters, digits and '-', at most 31"));
            }
            // the guest is not trusted: it writes only where a person says so
            let read_only = at.node("read-only").is_none() || at.bool("read-only");
            let to = at.owned("to");
            shares.push(SharePlan { name, path, read_only, to });
        }
        shares
    }

    fn usb(&mut self, at: &At<'_>) -> Option<UsbPlan> {
        match self.one_of(at, &["port", "id", "evdev"], "which device")? {
            "id" => Some(UsbPlan::Id(at.text("id").to_ascii_lowercase())),
            "port" => {
                let port = usb_port(at.text("port"));
                if port.is_none() {
                    let what = format!("'{}' is no port", at.text("port"));
                    self.push(
                        at.spot("port")
                            .problem(Kind::BadValue, what)
                            .fix("write bus-port as lsusb -t shows it, such as 1-4 or 1-4.2"),
                    );
                }
                port
            }
            _ => {
                let toggle = at.owned("toggle").unwrap_or_else(|| TOGGLE.to_owned());
                if !TOGGLES.contains(&toggle.as_str()) {
                    let what = format!("'{toggle}' switches nothing");
                    self.push(
                        at.spot("toggle")
                            .problem(Kind::BadValue, what)
                            .fix(format!("write one of: {}", TOGGLES.join(", "))),
                    );
                }
                let path = PathBuf::from(at.text("evdev"));
                if !path.starts_with("/dev/input") {
                    let what = format!("{} is no input device", path.display());
                    self.push(
                        at.spot("evdev")
                            .problem(Kind::BadValue, what)
                            .fix("write /dev/input/by-id/…-event-kbd"),
                    );
                }
                Some(UsbPlan::Evdev { path, toggle })
            }
        }
    }

    fn forwards(&mut self, at: &At<'_>, network: &NetworkPlan) -> Vec<ForwardPlan> {
        let Some(Node { value: Value::List(items), .. }) = at.node("forward") else { return Vec::new() };
        let mut forwards: Vec<ForwardPlan> = Vec::new();
        for item in items {
            let one = match &item.value {
                Value::Int(port) => {
                    u16::try_from(*port).ok().map(|port| ForwardPlan { host: port, guest: port })
                }
                Value::Text(text) => forward(text),
                _ => None,
            };
            let Some(one) = one else {
                let problem = at.spot("forward").problem(Kind::BadValue, "that is no port");
                self.push(problem.fix("write 3389, or \"13389:3389\" for another port here"));
                continue;
            };
            if forwards.iter().any(|other| other.host == one.host) {
                let what = format!("port {} of this host cannot lead to two places", one.host);
                self.push(
                    at.spot("forward")
                        .problem(Kind::Conflict, what)
                        .fix("write another one before the colon"),
                );
            }
            forwards.push(one);
        }
        if !forwards.is_empty() && *network != NetworkPlan::User {
            let what = match network {
                NetworkPlan::None => "there is no network to forward to",
                _ => "the guest has an address of its own: nothing is forwarded to it",
            };
            let problem = at.spot("forward").problem(Kind::Conflict, what);
            self.push(problem.fix("set network.mode = \"user\", or remove 'forward'"));
        }
        forwards
    }

    fn mac(&mut self, at: &At<'_>) -> Option<String> {
        let mac = at.opt_text("mac")?.to_ascii_lowercase();
        let bytes: Vec<u8> = mac
            .split(':')
            .filter(|part| part.len() == 2)
            .filter_map(|part| u8::from_str_radix(part, 16).ok())
            .collect();
        let good = bytes.len() == 6 && mac.len() == 17;
        if !good || bytes[0] & 1 == 1 {
            let what = format!("'{mac}' is no card's address");
            self.push(at.spot("mac").problem(Kind::BadValue, what).fix("write six pairs of digits, the first one even, such as 52:54:00:12:34:56; or leave it out: every instance has its own"));
            return None;
        }
        Some(mac)
    }
}

/// `3389` or `13389:3389`.
fn forward(text: &str) -> Option<ForwardPlan> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once(':') {
        Some((host, guest)) => Some(ForwardPlan { host: port(host)?, guest: port(guest)? }),
        None => port(text).map(|port| ForwardPlan { host: port, guest: port }),
    }
}

/// `1-4.2`: bus 1, port 4, and port 2 of the hub there.
fn usb_port(text: &str) -> Option<UsbPlan> {
    let (bus, port) = text.split_once('-')?;
    let digits = |part: &str| !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    let good = port.split('.').all(digits) && port.split('.').count() <= 7;
    Some(UsbPlan::Port { bus: bus.parse().ok()?, port: port.to_owned() }).filter(|_| good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(text: &str) -> Result<DevicesPlan, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("play.toml");
        std::fs::write(&path, format!("[guest]\nos = \"debian12\"\n{text}")).unwrap();
        crate::recipe::load(&path, &[])
            .map(|resolved| resolved.recipe.devices)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_person_s_words_become_devices() {
        let plan = load(
            "[[disk]]\nname = \"games\"\nsize = \"1 TiB\"\nkeep = true\n[[share]]\nname = \"music\"\npath = \"/srv/music\"\n\
             [[usb]]\nport = \"1-4.2\"\n[[usb]]\nid = \"046D:C52B\"\n[[usb]]\nevdev = \"/dev/input/by-id/k-event-kbd\"\n\
             [audio]\nto = \"pipewire\"\n[network]\nforward = [3389, \"2222:22\"]\nmac = \"52:54:00:AA:bb:01\"\n",
        )
        .unwrap();
        assert_eq!(
            plan.disks,
            [DiskPlan { name: "games".into(), bytes: Some(1 << 40), keep: true, path: None }]
        );
        assert!(plan.shares[0].read_only, "a guest writes only where a person says so");
        assert_eq!(plan.usb[0], UsbPlan::Port { bus: 1, port: "4.2".into() });
        assert_eq!(plan.usb[1], UsbPlan::Id("046d:c52b".into()));
        assert!(matches!(&plan.usb[2], UsbPlan::Evdev { toggle, .. } if toggle == "ctrl-ctrl"));
        assert_eq!((plan.audio, plan.mac.as_deref()), (AudioPlan::Pipewire, Some("52:54:00:aa:bb:01")));
        assert_eq!(
            plan.forwards,
            [ForwardPlan { host: 3389, guest: 3389 }, ForwardPlan { host: 2222, guest: 22 }]
        );
        assert_eq!(load("").unwrap(), DevicesPlan::default());
    }

    #[test]
    fn what_cannot_be_is_said_with_what_to_write() {
        for (text, what) in [
            ("[[disk]]\nsize = \"1 GiB\"\nkeep = true\n", "the disk's name is missing"),
            ("[[disk]]\nname = \"a\"\nkeep = true\n", "the disk has no size"),
            ("[[disk]]\nname = \"a\"\nsize = \"1 GiB\"\n", "does not say that the disk is kept"),
            ("[[disk]]\nname = \"a\"\nsize = \"1 MiB\"\nkeep = true\n", "from 16 MiB on"),
            (
                "[[disk]]\nname = \"a\"\nsize = \"1 GiB\"\nkeep = true\n[[disk]]\nname = \"a\"\nsize = \"1 GiB\"\nkeep = true\n",
                "two disks 'a'",
            ),
            ("[[share]]\nname = \"a\"\n", "a share has a name and a path"),
            ("[[usb]]\nport = \"four\"\n", "'four' is no port"),
            ("[[usb]]\nport = \"1-4\"\nid = \"1:2\"\n", "id"),
            ("[[usb]]\nevdev = \"/etc/passwd\"\n", "is no input device"),
            ("[network]\nforward = [\"a:b\"]\n", "that is no port"),
            ("[network]\nforward = [22, \"22:23\"]\n", "cannot lead to two places"),
            ("[network]\nmode = \"none\"\nforward = [22]\n", "no network to forward to"),
            ("[network]\nmac = \"01:00:5e:00:00:01\"\n", "is no card's address"),
            ("[network]\nmode = \"bridge\"\n", "needs 'bridge'"),
            ("[network]\nmode = \"bridge\"\nbridge = \"br0 up\"\n", "no interface's name"),
            ("[network]\nmode = \"user\"\nbridge = \"br0\"\n", "only used with mode"),
            ("[network]\nmode = \"macvtap\"\nparent = \"eth0\"\nforward = [22]\n", "an address of its own"),
        ] {
            let said = load(text).unwrap_err();
            assert!(said.contains(what) && said.contains("play.toml:"), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_small_parsers(text in ".{0,40}") {
            let _ = (forward(&text), usb_port(&text));
        }
    }
}
