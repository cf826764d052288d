//! The versions of Windows that recipes can name, told apart by their build number.

/// One version of Windows.
#[derive(Debug, PartialEq, Eq)]
pub struct System {
    /// As recipes say it in `guest.os`.
    pub os: &'static str,
    /// As people say it.
    pub name: &'static str,
    /// The folder of its drivers on a virtio-win ISO.
    pub virtio: &'static str,
    server: bool,
    /// The first build that is this system.
    build: u32,
    newest: u32,
}

const fn system(
    os: &'static str,
    name: &'static str,
    virtio: &'static str,
    server: bool,
    build: u32,
    newest: u32,
) -> System {
    System { os, name, virtio, server, build, newest }
}

impl System {
    /// The newest build of this system that was out when this was written (Microsoft's release information, 2026-11).
    pub fn newest_build(&self) -> u32 {
        self.newest
    }
}

/// Clients, then servers, each from old to new. Driver folders: virtio-win-pkg-scripts, `util/filemap.py`.
pub static SYSTEMS: &[System] = &[
    system("windows10", "Windows 10", "w10", false, 10240, 19045),
    system("windows11", "Windows 11", "w11", false, 22000, 26200),
    system("windows-server-2016", "Windows Server 2016", "2k16", true, 14393, 14393),
    system("windows-server-2019", "Windows Server 2019", "2k19", true, 17763, 17763),
    system("windows-server-2022", "Windows Server 2022", "2k22", true, 20348, 20348),
    system("windows-server-2025", "Windows Server 2025", "2k25", true, 26100, 26100),
];

/// The system of this build.
pub(super) fn of(server: bool, build: u32) -> Option<&'static System> {
    SYSTEMS.iter().rfind(|system| system.server == server && system.build <= build)
}

/// The system that a recipe names.
pub(crate) fn named(os: &str) -> Option<&'static System> {
    SYSTEMS.iter().find(|system| system.os == os)
}

/// Edition ids of evaluations, and for how many days they run after installation (Microsoft's Evaluation Center).
/// The first whose beginning fits counts.
const EVALUATIONS: &[(&str, u32)] =
    &[("Server", 180), ("Enterprise", 90), ("IoTEnterprise", 90), ("Professional", 90)];

/// The days that an evaluation runs; `None` if `edition` is none.
pub(super) fn evaluation_days(edition: &str) -> Option<u32> {
    let edition = edition.strip_suffix("Eval")?;
    EVALUATIONS.iter().find(|(start, _)| edition.starts_with(start)).map(|(_, days)| *days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_tell_systems_apart() {
        let os = |server, build| of(server, build).map(|system| system.os);
        assert_eq!(os(false, 19045), Some("windows10"));
        assert_eq!(os(false, 26100), Some("windows11"));
        assert_eq!(os(true, 26100), Some("windows-server-2025"));
        assert_eq!(os(true, 20348), Some("windows-server-2022"));
        assert_eq!(os(false, 9600), None);
    }

    #[test]
    fn evaluations_have_an_end() {
        assert_eq!(evaluation_days("ServerDatacenterEval"), Some(180));
        assert_eq!(evaluation_days("EnterpriseSEval"), Some(90));
        assert_eq!(evaluation_days("Professional"), None);
    }
}
