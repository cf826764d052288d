//! The packages of Debian 12 that the project needs, and how they get onto a machine.
//!
//! QEMU comes from `bookworm-backports`: its D-Bus display maps frames without copying (`Unix.Map`) only from
//! QEMU 10 on, and the lab host has the same build inside. The suite is read from a source list of our own in a
//! temporary folder, so a machine's own lists, and what its next upgrade brings, stay as they are.

use crate::apt::{self, Offer, Source};
use anyhow::{Context, Result, bail, ensure};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::{BufRead, Write as _};
use std::path::Path;
use xshell::{Shell, cmd};

/// What a package is for; a later one includes the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Building `no43` and running the main job in the lab.
    Demo,
    /// All suites.
    Test,
    /// The figures.
    Bench,
}

/// One row of the package table.
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// What here needs it.
    pub(crate) why: &'static str,
    /// From which tier on.
    pub(crate) tier: Tier,
    /// Built from the source package qemu or tied to its version: all of these come from one suite.
    pub(crate) of_qemu: bool,
    /// Not wanted where this other package is installed, because the two exclude each other.
    pub(crate) unless: Option<&'static str>,
}

/// The oldest QEMU that is good enough, and why, see the module's head.
pub(crate) const QEMU_AT_LEAST: &str = "1:10.0";

const fn package(tier: Tier, name: &'static str, why: &'static str) -> Package {
    Package { name, why, tier, of_qemu: false, unless: None }
}

const fn qemu(tier: Tier, name: &'static str, why: &'static str) -> Package {
    Package { name, why, tier, of_qemu: true, unless: None }
}

/// A compiler that Debian's `rustc` excludes; who has that one builds for Windows with rustup's.
const fn compiler(tier: Tier, name: &'static str, why: &'static str) -> Package {
    Package { name, why, tier, of_qemu: false, unless: Some("rustc") }
}

/// Every package, for Debian 12 on amd64.
pub(crate) const PACKAGES: &[Package] = &[
    package(Tier::Demo, "gcc", "linker for Rust programs"),
    package(Tier::Demo, "libc6-dev", "static C library for the no43 that runs in any lab host"),
    package(Tier::Demo, "pkg-config", "finds the C libraries of the D-Bus display"),
    package(Tier::Demo, "libusb-1.0-0-dev", "C library of the D-Bus display (qemu-display)"),
    package(Tier::Demo, "libusbredirhost-dev", "C library of the D-Bus display (qemu-display)"),
    qemu(Tier::Demo, "qemu-system-x86", "the machine; also the lab around it"),
    qemu(Tier::Demo, "qemu-system-common", "9p shares and modules of QEMU"),
    qemu(Tier::Demo, "qemu-system-data", "firmware blobs and keymaps of QEMU"),
    qemu(Tier::Demo, "qemu-system-modules-opengl", "D-Bus display of QEMU"),
    qemu(Tier::Demo, "qemu-utils", "qemu-img: layers as qcow2 overlays"),
    qemu(Tier::Demo, "seabios", "firmware of guests without UEFI"),
    package(Tier::Demo, "mmdebstrap", "builds Debian guests from packages"),
    package(Tier::Demo, "uidmap", "lets an ordinary user build them (mmdebstrap --mode=unshare)"),
    package(Tier::Demo, "e2fsprogs", "mke2fs -d: file systems without mounts"),
    package(Tier::Demo, "fdisk", "sfdisk: partition tables without loop devices"),
    package(Tier::Demo, "dosfstools", "EFI system partitions; fsck.fat for set-up disks"),
    package(Tier::Demo, "mtools", "files in EFI system partitions, without mounts"),
    package(Tier::Demo, "cpio", "small initial RAM disks"),
    package(Tier::Demo, "zstd", "packed kernels, modules and RAM disks"),
    package(Tier::Demo, "busybox-static", "the small user land of lab guests"),
    package(Tier::Test, "ovmf", "UEFI firmware of guests"),
    package(Tier::Test, "swtpm", "virtual TPM of Windows guests"),
    package(Tier::Test, "sbsigntool", "signs the stand-in for Windows Setup, for Secure Boot"),
    package(Tier::Test, "openssl", "opens ovmf's snakeoil key, which is encrypted with a published phrase"),
    package(Tier::Test, "qemu-guest-agent", "the real agent, as the other end in tests"),
    package(Tier::Test, "pciutils", "lspci, to compare with"),
    package(Tier::Test, "util-linux", "unshare: a small file system of its own for the full-disk case"),
    package(
        Tier::Test,
        "genisoimage",
        "discs in the shape of Windows and virtio-win media, for their readers",
    ),
    package(Tier::Test, "udftools", "mkudffs: discs of another writer, for the UDF reader"),
    package(Tier::Test, "wimtools", "wimlib-imagex: real WIM files, for the media inspection"),
    package(Tier::Test, "python3-dbusmock", "a stand-in for logind: inhibitors, and a host that shuts down"),
    package(Tier::Test, "dbus-daemon", "the bus that the stand-in for logind is on"),
    package(Tier::Test, "dbus-bin", "dbus-send: asks the stand-in what it holds"),
    package(Tier::Test, "nix-bin", "nix-instantiate --parse flake.nix"),
    compiler(
        Tier::Test,
        "rustc-web",
        "a Rust compiler that is new enough, for no43-guest.exe (62 MB with LLVM)",
    ),
    compiler(Tier::Test, "rust-web-src", "the Rust library's sources, compiled for Windows (45 MB)"),
    package(Tier::Test, "gcc-mingw-w64-x86-64-win32", "linker and C library for Windows programs (57 MB)"),
    package(Tier::Test, "wine64", "runs no43-guest.exe (103 MB with its libraries)"),
    package(Tier::Test, "wine", "the command wine"),
    package(Tier::Test, "xvfb", "the screen without which Wine has no Direct3D (3 MB, and Mesa's OpenGL)"),
    package(Tier::Test, "libvulkan1", "loader of Vulkan, for the GPU work of the guest program"),
    package(
        Tier::Test,
        "mesa-vulkan-drivers",
        "Vulkan on the processor (9 MB; its LLVM comes with QEMU's OpenGL, too)",
    ),
    package(Tier::Test, "wixl", "makes a small Windows Installer package to install under Wine"),
    package(Tier::Bench, "7zip", "7zz: the peer of looking into discs and driver packages"),
    package(Tier::Bench, "time", "largest resident memory of a process"),
];

/// What is known about a machine before anything is decided.
#[derive(Debug, Default)]
pub(crate) struct System {
    /// `ID` of os-release.
    pub(crate) id: String,
    /// `VERSION_CODENAME` of os-release.
    pub(crate) codename: String,
    /// Installed packages and their versions.
    pub(crate) installed: BTreeMap<String, String>,
    /// What the suites offer, backports included.
    pub(crate) offers: Vec<Offer>,
}

/// One package to install.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) name: &'static str,
    /// The version that is there and is too old.
    pub(crate) too_old: Option<String>,
    /// Installed from backports, by name.
    pub(crate) from_backports: bool,
}

/// Package names that are not there, or there in a version that is too old.
pub(crate) fn missing(installed: &BTreeMap<String, String>, tier: Tier) -> Vec<&'static Package> {
    let good = |p: &Package| match installed.get(p.name) {
        None => p.unless.is_some_and(|other| installed.contains_key(other)),
        Some(v) => !p.of_qemu || p.name == "seabios" || !older(v, QEMU_AT_LEAST),
    };
    PACKAGES.iter().filter(|p| p.tier <= tier && !good(p)).collect()
}

fn older(a: &str, b: &str) -> bool {
    apt::compare_versions(a, b) == Ordering::Less
}

/// What to install from where, and in one sentence why backports are used (`None`: they are not).
pub(crate) fn decide(system: &System, tier: Tier) -> (Vec<Wanted>, Option<String>) {
    let missing = missing(&system.installed, tier);
    let backports = format!("{}-backports", system.codename);
    let why = if missing.iter().any(|p| p.of_qemu) { backports_reason(system, &backports) } else { None };
    let wanted = |p: &&Package| Wanted {
        name: p.name,
        too_old: system.installed.get(p.name).cloned(),
        from_backports: p.of_qemu && why.is_some() && offered(system, p.name, |s| s == backports).is_some(),
    };
    (missing.iter().map(wanted).collect(), why)
}

fn backports_reason(system: &System, backports: &str) -> Option<String> {
    let newer_here =
        system.installed.iter().filter(|(name, _)| name.starts_with("qemu-")).find_map(|(name, here)| {
            let offer = offered(system, name, |s| s != backports)?;
            older(offer, here).then(|| {
                format!("{name} {here} is installed, newer than {offer}, which the enabled suites offer")
            })
        });
    newer_here.or_else(|| {
        let offer = offered(system, "qemu-system-x86", |s| s != backports);
        let at_least = QEMU_AT_LEAST.trim_start_matches("1:");
        match offer {
            Some(offer) if !older(offer, QEMU_AT_LEAST) => None,
            Some(offer) => {
                Some(format!("the enabled suites offer {offer}, the D-Bus display needs QEMU {at_least}"))
            }
            None => Some("the enabled suites offer no qemu-system-x86".to_owned()),
        }
    })
}

/// The newest version of `package` in suites that `suite` accepts.
fn offered<'a>(system: &'a System, package: &str, suite: impl Fn(&str) -> bool) -> Option<&'a str> {
    let of_package = system.offers.iter().filter(|o| o.package == package && suite(&o.suite));
    of_package.map(|o| o.version.as_str()).max_by(|a, b| apt::compare_versions(a, b))
}

/// How much the step may do without asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permission {
    /// Install without a question (`--yes`, `CI=1`, `CI=true`).
    pub(crate) yes: bool,
    /// Say what is missing, then go on (`--no-install`).
    pub(crate) no_install: bool,
    /// Stop after apt-get's own simulation (`ci packages --dry-run`).
    pub(crate) dry_run: bool,
}

/// Makes sure that the packages of `tier` are there. Returns a short summary for the step's line.
///
/// Errors: an unknown system, a 'no' at the question, or what apt-get said.
pub(crate) fn ensure_installed(tier: Tier, permission: Permission) -> Result<String> {
    let sh = Shell::new()?;
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let word = |key| apt::os_release(&release, key).unwrap_or_default().to_owned();
    let mut system = System { id: word("ID"), codename: word("VERSION_CODENAME"), ..System::default() };
    let names: Vec<&str> = PACKAGES.iter().filter(|p| p.tier <= tier).map(|p| p.name).collect();
    if (system.id.as_str(), system.codename.as_str()) != ("debian", "bookworm") {
        if permission.no_install {
            return Ok("not looked at (--no-install, and this is not Debian 12)".to_owned());
        }
        bail!(
            "this is not Debian 12 (os-release: ID={} VERSION_CODENAME={}), so nothing was installed.\n\
             Install by hand what these packages of Debian hold, QEMU 10.0 or newer, then add --no-install:\n{}",
            system.id,
            system.codename,
            table(tier)
        );
    }
    let format = apt::DPKG_FORMAT;
    let installed =
        cmd!(sh, "dpkg-query -W -f {format}").quiet().read().context("failed to ask dpkg-query")?;
    system.installed = apt::parse_dpkg(&installed);
    let missing = missing(&system.installed, tier);
    if missing.is_empty() {
        return Ok(format!("all {} are here", names.len()));
    }
    let list: Vec<&str> = missing.iter().map(|p| p.name).collect();
    if permission.no_install {
        return Ok(format!("not here, and not installed (--no-install): {}", list.join(" ")));
    }
    install(&sh, system, tier, permission)
}

fn install(sh: &Shell, mut system: System, tier: Tier, permission: Permission) -> Result<String> {
    let sources = with_backports(&system.codename)?;
    let apt = PrivateApt::new(sh, &sources)?;
    apt.update()?;
    system.offers = apt.offers(system.installed.keys().filter(|n| n.starts_with("qemu-")))?;
    let (wanted, why) = decide(&system, tier);
    let suite = format!("{}-backports", system.codename);
    eprintln!("{}", describe(&wanted, why.as_deref(), &suite));
    let targets: Vec<String> = wanted
        .iter()
        .map(|w| if w.from_backports { format!("{}/{suite}", w.name) } else { w.name.to_owned() })
        .collect();
    let simulation = apt.simulate(&targets)?;
    if permission.dry_run {
        return Ok(format!("would install {} ({simulation} with what they need)", targets.len()));
    }
    if !permission.yes {
        ask(&format!("Install {} packages ({} with what they need)?", targets.len(), simulation))?;
    }
    apt.install(&targets)?;
    Ok(format!("installed {} ({simulation} with what they need)", targets.len()))
}

fn with_backports(codename: &str) -> Result<Vec<Source>> {
    let own = system_sources(Path::new("/etc/apt"))?;
    apt::with_backports(&own, codename).with_context(|| {
        format!("/etc/apt names no mirror with the suite {codename} and the component main: add one, then try again")
    })
}

/// All sources that the system has enabled, from both formats.
fn system_sources(etc_apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.filter_map(|e| Some(e.ok()?.path())));
    }
    files[1..].sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|f| f.is_file()) {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(apt::parse_deb822(&text)),
            Some("list") => sources.extend(apt::parse_one_line(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

/// apt-get and apt-cache with a source list and package lists of their own; installed packages are the system's.
struct PrivateApt<'a> {
    sh: &'a Shell,
    dir: tempfile::TempDir,
}

impl<'a> PrivateApt<'a> {
    fn new(sh: &'a Shell, sources: &[Source]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("no43-apt-")
            .tempdir()
            .context("failed to make a temporary folder")?;
        // apt fetches as its own user, who must be able to look into the folder
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::create_dir_all(dir.path().join("lists/partial"))?;
        std::fs::write(dir.path().join("no43.sources"), apt::render_deb822(sources))?;
        Ok(Self { sh, dir })
    }

    fn options(&self) -> Vec<String> {
        let dir = self.dir.path().display();
        [
            format!("Dir::Etc::sourcelist={dir}/no43.sources"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
        ]
        .into_iter()
        .flat_map(|o| ["-o".to_owned(), o])
        .collect()
    }

    fn update(&self) -> Result<()> {
        let (sh, options) = (self.sh, self.options());
        cmd!(sh, "apt-get -q -q {options...} update")
            .quiet()
            .run()
            .context("failed to read the package lists")
    }

    fn offers<'n>(&self, besides: impl Iterator<Item = &'n String>) -> Result<Vec<Offer>> {
        let (sh, options) = (self.sh, self.options());
        let names: Vec<&str> = PACKAGES.iter().map(|p| p.name).chain(besides.map(String::as_str)).collect();
        let text = cmd!(sh, "apt-cache {options...} madison {names...}").quiet().ignore_stderr().read()?;
        Ok(apt::parse_madison(&text))
    }

    fn arguments(&self, targets: &[String]) -> Vec<String> {
        let fixed = ["--no-install-recommends", "--no-remove", "install"];
        self.options().into_iter().chain(fixed.map(str::to_owned)).chain(targets.iter().cloned()).collect()
    }

    /// How many packages would be unpacked; an error says what apt-get refuses.
    fn simulate(&self, targets: &[String]) -> Result<usize> {
        let (sh, arguments) = (self.sh, self.arguments(targets));
        let out = cmd!(sh, "apt-get -s -y {arguments...}").quiet().ignore_status().output()?;
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "apt-get cannot install these packages:\n{text}{error}");
        Ok(text.lines().filter(|l| l.starts_with("Inst ")).count())
    }

    fn install(&self, targets: &[String]) -> Result<()> {
        let (sh, arguments) = (self.sh, self.arguments(targets));
        let root = cmd!(sh, "id -u").quiet().read()? == "0";
        let front_end = "DEBIAN_FRONTEND=noninteractive";
        let command = if root {
            cmd!(sh, "env {front_end} apt-get -q -y {arguments...}")
        } else {
            cmd!(sh, "sudo env {front_end} apt-get -q -y {arguments...}")
        };
        command.run().context("failed to install packages; nothing was removed or downgraded")
    }
}

fn ask(question: &str) -> Result<()> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was installed; --yes installs without a question, --no-install goes on without the packages"
    );
    Ok(())
}

/// The table of packages for people: name and reason.
pub(crate) fn table(tier: Tier) -> String {
    let rows = PACKAGES.iter().filter(|p| p.tier <= tier);
    rows.map(|p| format!("  {:<27} {}", p.name, p.why)).collect::<Vec<_>>().join("\n")
}

fn describe(wanted: &[Wanted], why: Option<&str>, suite: &str) -> String {
    let reason = |name| PACKAGES.iter().find(|p| p.name == name).map_or("", |p| p.why);
    let mut lines: Vec<String> = vec!["These packages of Debian are needed:".to_owned()];
    for w in wanted {
        let old = w.too_old.as_ref().map(|v| format!(" (here: {v}, too old)")).unwrap_or_default();
        lines.push(format!("  {:<27} {}{old}", w.name, reason(w.name)));
    }
    if let Some(why) = why {
        lines.push(format!("QEMU comes from {suite}: {why}."));
        lines.push(
            "The suite is read from a source list of its own; this system's lists stay as they are."
                .to_owned(),
        );
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
qemu-utils | 1:10.0.2+ds-2+deb13u1~bpo12+1 | http://m.example/debian bookworm-backports/main amd64 Packages
qemu-utils | 1:7.2+dfsg-7+deb12u18+b3 | http://m.example/debian bookworm/main amd64 Packages
qemu-utils | 1:7.2+dfsg-7+deb12u15 | http://m.example/debian-security bookworm-security/main amd64 Packages
qemu-system-x86 | 1:10.0.2+ds-2+deb13u1~bpo12+1 | http://m.example/debian bookworm-backports/main amd64 Packages
qemu-system-x86 | 1:7.2+dfsg-7+deb12u18+b3 | http://m.example/debian bookworm/main amd64 Packages
seabios | 1.16.3-2~bpo12+1 | http://m.example/debian bookworm-backports/main amd64 Packages
seabios | 1.16.2-1 | http://m.example/debian bookworm/main amd64 Packages
mtools | 4.0.33-1+really4.0.32-1 | http://m.example/debian bookworm/main amd64 Packages
";

    fn system(but: &[(&str, Option<&str>)]) -> System {
        let version = |p: &Package| if p.of_qemu { "1:10.0.2+ds-2+deb13u1~bpo12+1" } else { "1.0" };
        let mut installed: BTreeMap<String, String> =
            PACKAGES.iter().map(|p| (p.name.to_owned(), version(p).to_owned())).collect();
        for (name, version) in but {
            match version {
                Some(v) => installed.insert((*name).to_owned(), (*v).to_owned()),
                None => installed.remove(*name),
            };
        }
        System {
            id: "debian".into(),
            codename: "bookworm".into(),
            installed,
            offers: apt::parse_madison(MADISON),
        }
    }

    fn shown(system: &System) -> String {
        let (wanted, why) = decide(system, Tier::Test);
        let targets: Vec<String> = wanted
            .iter()
            .map(|w| format!("{}{}", w.name, if w.from_backports { " (backports)" } else { "" }))
            .collect();
        format!("{}\n{}", targets.join("\n"), why.unwrap_or_else(|| "no backports".to_owned()))
    }

    #[test]
    fn a_machine_that_has_everything_needs_nothing() {
        assert_eq!(decide(&system(&[]), Tier::Bench), (vec![], None));
    }

    #[test]
    fn a_compiler_that_debians_own_excludes_is_left_out() {
        let wants =
            |own: Option<&str>| shown(&system(&[("rustc-web", None), ("rustc", own)])).contains("rustc-web");
        assert!(wants(None) && !wants(Some("1.63")));
    }

    #[test]
    fn a_newer_qemu_without_its_source_means_backports_for_the_rest() {
        insta::assert_snapshot!(shown(&system(&[("qemu-system-x86", None), ("seabios", None), ("mtools", None)])), @r"
        qemu-system-x86 (backports)
        seabios (backports)
        mtools
        qemu-utils 1:10.0.2+ds-2+deb13u1~bpo12+1 is installed, newer than 1:7.2+dfsg-7+deb12u18+b3, which the enabled suites offer
        ");
    }

    #[test]
    fn an_old_qemu_is_replaced_by_the_one_from_backports() {
        let old = Some("1:7.2+dfsg-7+deb12u18");
        insta::assert_snapshot!(shown(&system(&[("qemu-system-x86", old), ("qemu-utils", None)])), @r"
        qemu-system-x86 (backports)
        qemu-utils (backports)
        the enabled suites offer 1:7.2+dfsg-7+deb12u18+b3, the D-Bus display needs QEMU 10.0
        ");
    }

    #[test]
    fn other_packages_alone_need_no_backports() {
        insta::assert_snapshot!(shown(&system(&[("mtools", None)])), @r"
        mtools
        no backports
        ");
    }

    #[test]
    fn the_list_that_is_shown_says_why() {
        let (wanted, why) =
            decide(&system(&[("qemu-system-x86", Some("1:7.2")), ("mtools", None)]), Tier::Test);
        insta::assert_snapshot!(describe(&wanted, why.as_deref(), "bookworm-backports"), @r"
        These packages of Debian are needed:
          qemu-system-x86             the machine; also the lab around it (here: 1:7.2, too old)
          mtools                      files in EFI system partitions, without mounts
        QEMU comes from bookworm-backports: qemu-utils 1:10.0.2+ds-2+deb13u1~bpo12+1 is installed, newer than 1:7.2+dfsg-7+deb12u18+b3, which the enabled suites offer.
        The suite is read from a source list of its own; this system's lists stay as they are.
        ");
    }

    #[test]
    fn names_are_unique_and_tiers_grow() {
        let mut names: Vec<_> = PACKAGES.iter().map(|p| p.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
        let nothing = BTreeMap::new();
        assert!(missing(&nothing, Tier::Demo).len() < missing(&nothing, Tier::Test).len());
    }
}
