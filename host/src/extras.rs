//! Huge pages and taps that root makes for one lease, written down before they are made and taken back with it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::binding::{BindError, Place};
use crate::holders;
use crate::net::{MACVTAP, NetDevice, macvtap_node};
use crate::process::ProcessRef;
use crate::roots::read_small;

/// The size of a huge page: the one that x86-64 has everywhere and that can be had while a host runs.
pub const HUGE_PAGE_MIB: u64 = 2;
/// The pool of pages of 2 MiB, relative to `/sys`.
const POOL: &str = "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Pages that nobody has, and those among them that are promised to somebody.
const FREE: &str = "kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const PROMISED: &str = "kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";
/// Relative to `/proc`: moves memory together, so that there are pieces of 2 MiB.
const COMPACT: &str = "sys/vm/compact_memory";

/// Where a guest's huge pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// The pool has that many that nobody uses.
    FromPool {
        /// Of 2 MiB each.
        pages: u64,
    },
    /// That many were added, and go back with the lease.
    Added {
        /// Of 2 MiB each.
        pages: u64,
    },
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HugePages::FromPool { pages } => write!(f, "{pages} huge pages of 2 MiB out of this host's pool"),
            HugePages::Added { pages } => {
                write!(f, "{pages} huge pages of 2 MiB, set aside until the guest has ended")
            }
        }
    }
}

/// What one lease has beside its cards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extra {
    pub(crate) lease: String,
    pub(crate) owner: ProcessRef,
    pub(crate) uid: u32,
    pub(crate) boot_id: String,
    /// Pages that were added to the pool.
    pub(crate) hugepages: u64,
    /// Interfaces that were made.
    pub(crate) taps: Vec<String>,
}

impl Extra {
    /// Two users may give their leases one name.
    pub(crate) fn file(&self) -> String {
        format!("{}-{}", self.uid, self.lease)
    }
}

fn refused(why: impl Into<String>) -> BindError {
    BindError::Refused { why: why.into() }
}

impl Place<'_> {
    /// Adds pages to the pool, all of them or none.
    pub(crate) fn hugepages(
        &self,
        pages: u64,
        lease: &str,
        owner: ProcessRef,
        uid: u32,
    ) -> Result<u64, BindError> {
        let _lock = self.state.lock_host()?;
        self.sweep_extras()?;
        let pool = self.roots.sys.join(POOL);
        let before = count(&pool)?;
        let mut extra = self.extra(lease, owner, uid);
        extra.hugepages += pages;
        self.state.write_extra(&extra)?;
        let wanted = format!("{}\n", before + pages);
        let mut written = self.write(&pool, &wanted, "the pool of huge pages");
        if written.is_ok() && count(&pool)? < before + pages {
            // a kernel without it may still find more at a second look
            let _ = self.write(&self.roots.proc_.join(COMPACT), "1\n", "the order to compact memory");
            written = self.write(&pool, &wanted, "the pool of huge pages");
        }
        let got = count(&pool)?.saturating_sub(before);
        if written.is_ok() && got >= pages {
            return Ok(pages);
        }
        // the kernel gives what it finds: a part is of no use
        self.write(&pool, &format!("{before}\n"), "the pool of huge pages")?;
        extra.hugepages -= pages;
        self.keep_or_forget(&extra)?;
        written?;
        Err(refused(format!(
            "only {got} of {pages} huge pages could be had: memory is full or in pieces; ask after a reboot, or reserve them with hugepages= on the kernel command line"
        )))
    }

    /// Makes a network device of a user: a tap in one of the bridges, or a macvtap beside one of the interfaces, that root has
    /// allowed. Root itself needs no leave.
    pub(crate) fn network(
        &self,
        device: &NetDevice,
        allowed: &[String],
        lease: &str,
        owner: ProcessRef,
        uid: u32,
    ) -> Result<String, BindError> {
        may_use(device.on(), allowed, uid)?;
        device.check(self.roots).map_err(|error| refused(error.to_string()))?;
        let _lock = self.state.lock_host()?;
        self.sweep_extras()?;
        let net = self.roots.sys.join("class/net");
        let free = (0..1000).map(|n| device.name(n)).find(|name| !net.join(name).exists());
        let name = free.ok_or_else(|| refused("there are a thousand of these already"))?;
        let mut extra = self.extra(lease, owner, uid);
        extra.taps.push(name.clone());
        self.state.write_extra(&extra)?;
        if let Err(error) = self.make(device, &name, uid) {
            let _ = self.remove_tap(&name);
            extra.taps.retain(|tap| *tap != name);
            self.keep_or_forget(&extra)?;
            return Err(error);
        }
        Ok(name)
    }

    fn make(&self, device: &NetDevice, name: &str, uid: u32) -> Result<(), BindError> {
        match device {
            NetDevice::Tap { bridge } => {
                let mtu = read_small(&self.roots.sys.join("class/net").join(bridge).join("mtu"));
                let mtu = mtu.map_or_else(|_| "1500".to_owned(), |text| text.trim().to_owned());
                self.ip(&["tuntap", "add", "dev", name, "mode", "tap", "user", &uid.to_string()])?;
                // first its size of packets: a bridge takes the smallest of its ports
                self.ip(&["link", "set", "dev", name, "mtu", &mtu])?;
                self.ip(&["link", "set", "dev", name, "master", bridge, "up"])
            }
            NetDevice::Macvtap { parent, mac } => {
                let kind = ["type", "macvtap", "mode", "bridge"];
                self.ip(
                    &[&["link", "add", "link", parent, "name", name, "address", mac][..], &kind].concat()
                )?;
                self.ip(&["link", "set", "dev", name, "up"])?;
                let node = macvtap_node(name, self.roots);
                std::os::unix::fs::chown(&node, Some(uid), None)
                    .map_err(|error| refused(format!("{} cannot be handed out: {error}", node.display())))
            }
        }
    }

    /// Takes back what a lease of this user has (for root any lease of that name), and what the dead have left.
    pub(crate) fn give_back_extras(&self, lease: Option<&str>, uid: u32) -> Result<(), BindError> {
        let extras = self.state.extras(self.roots);
        if extras.is_empty() {
            return Ok(());
        }
        let _lock = self.state.lock_host()?;
        let theirs = |e: &Extra| lease == Some(e.lease.as_str()) && (uid == 0 || e.uid == uid);
        extras.into_iter().filter(theirs).try_for_each(|extra| self.take_back(extra))?;
        self.sweep_extras()
    }

    /// Takes back what the dead have left. A tap that a living machine still has open is left to it.
    pub(crate) fn sweep_extras(&self) -> Result<(), BindError> {
        let dead = |extra: &Extra| !extra.owner.is_alive(self.roots);
        let in_use = |extra: &Extra| extra.taps.iter().any(|tap| self.is_open(tap));
        let extras = self.state.extras(self.roots);
        extras.into_iter().filter(|e| dead(e) && !in_use(e)).try_for_each(|extra| self.take_back(extra))
    }

    fn take_back(&self, mut extra: Extra) -> Result<(), BindError> {
        while let Some(tap) = extra.taps.last().cloned() {
            self.remove_tap(&tap)?;
            extra.taps.pop();
            self.keep_or_forget(&extra)?;
        }
        if extra.hugepages > 0 {
            let pool = self.roots.sys.join(POOL);
            let left = count(&pool)?.saturating_sub(extra.hugepages);
            self.write(&pool, &format!("{left}\n"), "the pool of huge pages")?;
            extra.hugepages = 0;
        }
        self.keep_or_forget(&extra)
    }

    fn extra(&self, lease: &str, owner: ProcessRef, uid: u32) -> Extra {
        let known = self.state.extras(self.roots).into_iter().find(|e| e.lease == lease && e.uid == uid);
        known.unwrap_or_else(|| Extra {
            lease: lease.into(),
            owner,
            uid,
            boot_id: self.roots.boot_id(),
            hugepages: 0,
            taps: Vec::new(),
        })
    }

    fn keep_or_forget(&self, extra: &Extra) -> Result<(), BindError> {
        let done = match extra.hugepages == 0 && extra.taps.is_empty() {
            true => self.state.remove_extra(extra),
            false => self.state.write_extra(extra),
        };
        Ok(done?)
    }

    /// Whether somebody has it open. A tap has a carrier then; a macvtap has its interface's, and a node of its own.
    fn is_open(&self, tap: &str) -> bool {
        let file = self.roots.sys.join("class/net").join(tap).join("carrier");
        match tap.starts_with(MACVTAP) {
            true => !holders::of_nodes(&[macvtap_node(tap, self.roots)], self.roots).is_empty(),
            false => read_small(&file).is_ok_and(|text| text.trim() == "1"),
        }
    }

    fn remove_tap(&self, name: &str) -> Result<(), BindError> {
        match self.roots.sys.join("class/net").join(name).exists() {
            true => self.ip(&["link", "delete", "dev", name]),
            false => Ok(()),
        }
    }

    /// Runs `ip` from where root's programs are, with names that were checked.
    fn ip(&self, arguments: &[&str]) -> Result<(), BindError> {
        let place = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];
        let program = place.iter().map(Path::new).find(|path| path.exists());
        let program = program
            .filter(|_| self.roots.is_real())
            .ok_or_else(|| refused("there is no program ip (package iproute2)"))?;
        let mut command = Command::new(program);
        let output = command.args(arguments).env_clear().stdin(Stdio::null()).output();
        let output = output.map_err(|e| refused(format!("{} could not be run: {e}", program.display())))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(refused(format!(
                "ip {} failed: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    }
}

/// Pages for a guest's memory.
pub(crate) fn huge_pages_of(memory_mib: u64) -> u64 {
    memory_mib.div_ceil(HUGE_PAGE_MIB)
}

/// Pages that a new guest can have.
pub(crate) fn free_huge_pages(roots: &crate::roots::Roots) -> Result<u64, BindError> {
    Ok(count(&roots.sys.join(FREE))?.saturating_sub(count(&roots.sys.join(PROMISED))?))
}

fn count(pool: &Path) -> Result<u64, BindError> {
    let text = read_small(pool)
        .map_err(|e| refused(format!("there is no pool of huge pages here ({}: {e})", pool.display())))?;
    let first = text.lines().next().unwrap_or_default();
    first.trim().parse().map_err(|_| refused(format!("{} says '{first}'", pool.display())))
}

/// The bridges that root has allowed: one name a line in a file that only root can write.
pub(crate) fn allowed_bridges(file: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let trusted = fs::metadata(file).is_ok_and(|facts| facts.uid() == 0 && facts.mode() & 0o022 == 0);
    let text = if trusted { fs::read_to_string(file).unwrap_or_default() } else { String::new() };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|name| crate::net::is_interface(name)).map(str::to_string).collect()
}

/// Users join only what root has named; root itself joins anything.
fn may_use(on: &str, allowed: &[String], uid: u32) -> Result<(), BindError> {
    if uid == 0 || allowed.iter().any(|name| name == on) {
        return Ok(());
    }
    let file = crate::privilege::BRIDGES;
    Err(refused(format!("{on} is not one that guests may use: root puts its name into {file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_pages_are_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let roots = crate::Roots::under(dir.path());
        let pool = roots.sys.join(POOL);
        let missing = free_huge_pages(&roots).unwrap_err().to_string();
        assert!(missing.contains("no pool of huge pages"), "{missing}");
        fs::create_dir_all(pool.parent().unwrap()).unwrap();
        fs::write(roots.sys.join(FREE), "130\n").unwrap();
        fs::write(roots.sys.join(PROMISED), "20\n").unwrap();
        assert_eq!(free_huge_pages(&roots).unwrap(), 110);
        assert_eq!([huge_pages_of(256), huge_pages_of(257)], [128, 129]);
    }

    #[test]
    fn a_user_joins_only_what_root_has_named() {
        let allowed = ["br0".to_owned()];
        assert!(may_use("br0", &allowed, 1000).is_ok());
        assert!(may_use("br7", &allowed, 0).is_ok());
        let refused = may_use("br7", &allowed, 1000).unwrap_err().to_string();
        assert!(refused.contains("br7") && refused.contains("/etc/no43/bridges"), "{refused}");
    }
}
