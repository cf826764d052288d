//! Display devices and their connectors, as the DRM class in sysfs shows them.

use std::path::Path;

use no43_guest::protocol::{Connector, DrmNode};

use super::{Root, names, pci, read_text};

/// One display device of a DRM driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DisplayDevice {
    /// The kernel's name, as `card0`.
    pub(crate) name: String,
    /// PCI address of the function it belongs to.
    pub(crate) pci: Option<String>,
    /// Major and minor number of its device node.
    pub(crate) node: Option<(u32, u32)>,
}

/// All display devices, ordered by name.
pub(crate) fn devices(root: &Root, unknown: &mut Vec<String>) -> Vec<DisplayDevice> {
    let class = root.path("sys/class/drm");
    class_names(&class, unknown)
        .into_iter()
        .filter(|name| is_card(name))
        .map(|name| {
            let dir = class.join(&name);
            DisplayDevice { pci: pci_parent(&dir), node: node_numbers(&dir), name }
        })
        .collect()
}

/// Every device node of a display driver (`card0`, `renderD128`) with the card it belongs to, ordered by name.
pub(crate) fn nodes(root: &Root, unknown: &mut Vec<String>) -> Vec<DrmNode> {
    let class = root.path("sys/class/drm");
    let is_node = |name: &String| is_card(name) || name.starts_with("renderD");
    let names = class_names(&class, unknown).into_iter().filter(is_node);
    names.map(|name| DrmNode { pci: pci_parent(&class.join(&name)), name }).collect()
}

/// All connectors, ordered by device and name.
pub(crate) fn connectors(root: &Root, unknown: &mut Vec<String>) -> Vec<Connector> {
    let class = root.path("sys/class/drm");
    let names = class_names(&class, unknown);
    let devices = devices(root, unknown);
    let mut connectors = Vec::new();
    for device in devices {
        let prefix = format!("{}-", device.name);
        for name in names.iter().filter_map(|name| name.strip_prefix(&prefix)) {
            connectors.push(connector(&class.join(format!("{prefix}{name}")), name, &device, unknown));
        }
    }
    connectors
}

fn connector(dir: &Path, name: &str, device: &DisplayDevice, unknown: &mut Vec<String>) -> Connector {
    let mut attribute = |file: &str| {
        read_text(&dir.join(file))
            .map_err(|error| unknown.push(format!("{}-{name}/{file}: {error}", device.name)))
            .ok()
    };
    let status = attribute("status");
    let mut modes: Vec<String> = Vec::new();
    for mode in attribute("modes").unwrap_or_default().lines() {
        if !modes.iter().any(|known| known == mode) {
            modes.push(mode.to_owned()); // a resolution is listed once for every refresh rate
        }
    }
    Connector { pci: device.pci.clone(), card: device.name.clone(), name: name.to_owned(), status, modes }
}

fn class_names(class: &Path, unknown: &mut Vec<String>) -> Vec<String> {
    names(class).unwrap_or_else(|error| {
        unknown.push(format!("{}: {error}", class.display()));
        Vec::new()
    })
}

/// `card0`, but not `card0-HDMI-A-1` and not `renderD128`.
fn is_card(name: &str) -> bool {
    name.strip_prefix("card").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The nearest PCI function above the device: a virtio card hangs below a virtio device, not below PCI directly.
fn pci_parent(dir: &Path) -> Option<String> {
    let device = dir.join("device").canonicalize().ok()?;
    device.components().rev().find_map(|part| pci::address(part.as_os_str().to_str()?))
}

fn node_numbers(dir: &Path) -> Option<(u32, u32)> {
    let text = read_text(&dir.join("dev")).ok()?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    #[test]
    fn connectors_know_the_card_they_belong_to() {
        let guest = FakeGuest::new();
        guest.function("0000:00:02.0", &[("class", "0x030000")]);
        guest.function("0000:01:00.0", &[("class", "0x038000")]);
        guest.display("0000:00:02.0/virtio1", "card0", (226, 0), &[("Virtual-1", "disconnected", "")]);
        guest.display(
            "0000:01:00.0",
            "card1",
            (226, 1),
            &[("DP-1", "unknown", ""), ("HDMI-A-1", "connected", "1280x800\n1280x800\n640x480\n")],
        );
        let mut unknown = Vec::new();
        let lines: Vec<String> =
            connectors(&guest.root(), &mut unknown).iter().map(|c| format!("{c:?}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        Connector { pci: Some("0000:00:02.0"), card: "card0", name: "Virtual-1", status: Some("disconnected"), modes: [] }
        Connector { pci: Some("0000:01:00.0"), card: "card1", name: "DP-1", status: Some("unknown"), modes: [] }
        Connector { pci: Some("0000:01:00.0"), card: "card1", name: "HDMI-A-1", status: Some("connected"), modes: ["1280x800", "640x480"] }
        "#);
        assert_eq!(
            devices(&guest.root(), &mut unknown)[1],
            DisplayDevice { name: "card1".into(), pci: Some("0000:01:00.0".into()), node: Some((226, 1)) }
        );
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn a_guest_without_displays_has_no_connectors() {
        let mut unknown = Vec::new();
        assert!(connectors(&FakeGuest::new().root(), &mut unknown).is_empty());
        assert!(unknown.is_empty());
    }
}
