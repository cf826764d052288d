//! Who has a card's device nodes open. Looked up before anything is written: a driver that is unbound under a holder may
//! hang for ever.
//!
//! An ordinary user sees only processes of their own; the verb that runs as root looks again.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::inventory::{Function, Inventory};
use crate::process::name_of;
use crate::roots::read_small;
use crate::{PciAddress, Roots};

/// A process that has a device node open.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Process name as `ps` shows it.
    pub name: String,
    /// The node, for example `/dev/dri/card0`.
    pub node: PathBuf,
}

/// `gnome-shell (2211, /dev/dri/card0) and Xorg (900, /dev/dri/card0)`
pub fn sentence(holders: &[Holder]) -> String {
    let each: Vec<String> =
        holders.iter().map(|h| format!("{} ({}, {})", h.name, h.pid, h.node.display())).collect();
    match each.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "nobody".to_string(),
    }
}

/// Who has device nodes of these functions open.
pub fn of_functions(inventory: &Inventory, functions: &[PciAddress], roots: &Roots) -> Vec<Holder> {
    let nodes: Vec<PathBuf> =
        functions.iter().filter_map(|a| inventory.function(a)).flat_map(|f| nodes_of(f, roots)).collect();
    of_nodes(&nodes, roots)
}

/// Who has any of these device nodes open, this process itself left out.
pub fn of_nodes(nodes: &[PathBuf], roots: &Roots) -> Vec<Holder> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = fs::read_dir(&roots.proc_) else { return Vec::new() };
    let mut holders: Vec<Holder> = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .flat_map(|pid| of_process(pid, nodes, roots))
        .collect();
    holders.sort_by(|a, b| (a.pid, &a.node).cmp(&(b.pid, &b.node)));
    holders.dedup();
    holders
}

fn of_process(pid: u32, nodes: &[PathBuf], roots: &Roots) -> Vec<Holder> {
    let Ok(files) = fs::read_dir(roots.proc_.join(pid.to_string()).join("fd")) else { return Vec::new() };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter(|target| target.as_os_str().as_bytes().starts_with(b"/") && nodes.contains(target))
        .map(|node| Holder { pid, name: name_of(pid, roots).unwrap_or_else(|| "a process".into()), node })
        .collect()
}

/// The device nodes by which processes use a function under its present driver.
pub fn nodes_of(function: &Function, roots: &Roots) -> Vec<PathBuf> {
    let dir = roots.device(&function.address);
    let mut nodes = vfio_nodes(function, roots);
    match function.driver.as_deref() {
        None => return nodes,
        Some(driver) if driver.contains("vfio") => return nodes,
        Some("nvidia") => nodes.extend(nvidia_nodes(&function.address, roots)),
        Some(_) => {}
    }
    nodes.extend(names_in(&dir.join("drm")).into_iter().map(|name| roots.dev.join("dri").join(name)));
    nodes.extend(names_in(&dir.join("graphics")).into_iter().map(|name| roots.dev.join(name)));
    for card in names_in(&dir.join("sound")) {
        let parts = names_in(&dir.join("sound").join(card));
        // controlC1, pcmC1D3p, hwC1D0; the rest of that directory are attributes
        nodes.extend(
            parts.into_iter().filter(|name| name.contains('C')).map(|name| roots.dev.join("snd").join(name)),
        );
    }
    nodes
}

/// The nodes by which a VM has a function: the group's, and the device's own on newer kernels.
pub(crate) fn vfio_nodes(function: &Function, roots: &Roots) -> Vec<PathBuf> {
    if !function.driver.as_deref().is_some_and(|driver| driver.contains("vfio")) {
        return Vec::new();
    }
    let devices = names_in(&roots.device(&function.address).join("vfio-dev"));
    let group = function.group.map(|group| group_node(group, roots));
    group
        .into_iter()
        .chain(devices.into_iter().map(|name| roots.dev.join("vfio/devices").join(name)))
        .collect()
}

/// `/dev/vfio/17`
pub(crate) fn group_node(group: u32, roots: &Roots) -> PathBuf {
    roots.dev.join("vfio").join(group.to_string())
}

/// `/dev/nvidia0` by the number that the driver tells; all of them where it does not.
fn nvidia_nodes(address: &PciAddress, roots: &Roots) -> Vec<PathBuf> {
    let information = roots.proc_.join("driver/nvidia/gpus").join(address.to_string()).join("information");
    let minor = read_small(&information).ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse::<u32>().ok())
    });
    match minor {
        Some(minor) => vec![roots.dev.join(format!("nvidia{minor}"))],
        None => names_in(&roots.dev)
            .into_iter()
            .filter(|name| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok()))
            .map(|name| roots.dev.join(name))
            .collect(),
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
