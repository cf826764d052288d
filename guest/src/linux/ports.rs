//! The named virtio ports, as the kernel lists them.

use std::path::PathBuf;

use super::{Root, names, read_text};

/// Device node of the port that QEMU gave this name. Not by `/dev/virtio-ports`, where its link may come later.
pub(crate) fn port(root: &Root, wanted: &str) -> Option<PathBuf> {
    let (device, _) = ports(root).into_iter().find(|(_, name)| name == wanted)?;
    Some(root.path("dev").join(device))
}

/// All named ports: the kernel's name (`vport1p1`) and the name that QEMU gave.
pub(crate) fn ports(root: &Root) -> Vec<(String, String)> {
    let class = root.path("sys/class/virtio-ports");
    let devices = names(&class).unwrap_or_default();
    devices
        .into_iter()
        .filter_map(|device| {
            let name = read_text(&class.join(&device).join("name")).ok()?;
            (!name.is_empty()).then_some((device, name))
        })
        .collect()
}
