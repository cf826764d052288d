//! Whether this user may lock as much memory as VFIO pins: asked before QEMU starts, because its own error is a bare -12.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// VFIO pins all guest memory, and QEMU maps firmware, ROMs and video memory for devices too.
const OVERHEAD: u64 = 256 << 20;

/// The limit is too low.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this user may lock {} of memory and the VM needs {} ({needed} bytes) for its passed-through cards: \
     put \"{user} - memlock {}\" into /etc/security/limits.d/no43.conf and log in again",
    size(*limit), size(*needed), needed.div_ceil(1024)
)]
pub struct MemlockError {
    /// Bytes that the VM needs.
    pub needed: u64,
    /// Bytes that may be locked.
    pub limit: u64,
    /// The user, by name where the environment tells it.
    pub user: String,
}

/// Bytes that a VM with this much memory locks when it has a passed-through card.
pub fn needed(vm_mib: u64) -> u64 {
    (vm_mib << 20).saturating_add(OVERHEAD)
}

/// Bytes that this process may lock, or may allow itself to; `None` means no limit.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Memlock).maximum
}

/// Whether a VM with this much memory and a passed-through card can start here. Root has no such limit.
///
/// Where only the soft limit is in the way, it is raised for this process, from which QEMU inherits it.
pub fn check(vm_mib: u64) -> Result<(), MemlockError> {
    let needed = needed(vm_mib);
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    if current.is_none_or(|limit| limit >= needed) || may_exceed() {
        return Ok(());
    }
    let raised = Rlimit { current: maximum, maximum };
    match maximum {
        Some(limit) if limit < needed => {
            let user = std::env::var("USER").unwrap_or_else(|_| "<user>".into());
            Err(MemlockError { needed, limit, user })
        }
        // a soft limit up to the hard one is never refused
        _ => setrlimit(Resource::Memlock, raised).map_err(|_| MemlockError {
            needed,
            limit: current.unwrap_or(0),
            user: std::env::var("USER").unwrap_or_else(|_| "<user>".into()),
        }),
    }
}

/// CAP_IPC_LOCK lifts the limit; root has it unless a container took it away.
pub(crate) fn may_exceed() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK))
}

/// `8 MiB`, `16.3 GiB`
pub(crate) fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    match bytes {
        // one decimal is exact enough for people and never rounds a need down
        b if b >= GIB => format!("{:.1} GiB", (b as f64 / GIB as f64 * 10.0).ceil() / 10.0),
        b => format!("{} MiB", b.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_both_numbers_and_the_line_to_write() {
        let error = MemlockError { needed: needed(16 << 10), limit: 8 << 20, user: "joueur".into() };
        insta::assert_snapshot!(error.to_string(), @r#"this user may lock 8 MiB of memory and the VM needs 16.3 GiB (17448304640 bytes) for its passed-through cards: put "joueur - memlock 17039360" into /etc/security/limits.d/no43.conf and log in again"#);
    }
}
