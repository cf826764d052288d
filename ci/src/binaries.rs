//! The programs that are tested, and where cargo puts them.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

/// The triple is always named, so that host build scripts are not built with static flags.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest program for Windows is built for.
const WINDOWS: &str = "x86_64-pc-windows-gnu";

/// Debian's newest compiler, and the library's sources that belong to it (packages rustc-web and rust-web-src).
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/Cargo.lock";

/// Paths of built programs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    /// `no43`, one static file: the same one runs outside and in any lab host.
    pub(crate) no43: PathBuf,
    /// `no43-guest`, dynamic, for Linux guests.
    pub(crate) guest: PathBuf,
    /// `no43-guest.exe`, for Windows guests.
    pub(crate) windows_guest: PathBuf,
}

/// What is tested is quick to build; what is measured is what people run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Profile {
    /// For tests and the demo.
    Lab,
    /// For figures.
    Release,
}

impl Profile {
    /// Cargo's name of it, and of its folder.
    fn name(self) -> &'static str {
        match self {
            Profile::Lab => "lab",
            Profile::Release => "release",
        }
    }
}

impl Binaries {
    /// Where they will be, under the target folder of `root`.
    pub(crate) fn of(root: &Path, profile: Profile) -> Self {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |t| root.join(t));
        Self {
            no43: target.join(TARGET).join(profile.name()).join("no43"),
            guest: target.join(profile.name()).join("no43-guest"),
            windows_guest: target.join(WINDOWS).join("windows/no43-guest.exe"),
        }
    }

    /// Tells programs that are started through `sh` where these are.
    pub(crate) fn announce(&self, sh: &Shell) {
        sh.set_var("NO43_BIN", &self.no43);
        sh.set_var("NO43_GUEST", &self.guest);
        if self.windows_guest.is_file() {
            sh.set_var("NO43_GUEST_WINDOWS", &self.windows_guest);
        }
    }
}

/// The commands that build both.
///
/// `no43` leaves the D-Bus display out: its C libraries cannot be linked statically from Debian's packages.
pub(crate) fn build_commands(sh: &Shell, profile: Profile) -> Vec<Cmd<'_>> {
    let (features, profile) = ("--no-default-features", profile.name());
    vec![
        cmd!(sh, "cargo build -q --profile {profile} --target {TARGET} -p no43 {features}")
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        cmd!(sh, "cargo build -q --profile {profile} -p no43-guest"),
    ]
}

/// The command that builds the guest program for Windows; an error says what is missing.
///
/// With the target's own library (`rustup target add`), it is an ordinary build. A machine with nothing but Debian's
/// packages compiles the library, too: only nightly compilers are meant to, hence `RUSTC_BOOTSTRAP`.
pub(crate) fn windows_build_command(sh: &Shell) -> Result<Cmd<'_>> {
    let linker = "x86_64-w64-mingw32-gcc";
    let args = ["--profile", "windows", "-p", "no43-guest", "--bin", "no43-guest", "--target", WINDOWS];
    let runs = |program: &str| cmd!(sh, "{program} --version").quiet().ignore_stderr().read().is_ok();
    ensure!(runs(linker), "{linker} is not here (package gcc-mingw-w64-x86-64-win32)");
    let build = cmd!(sh, "cargo build -q {args...}").env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", linker);
    // Without a time stamp, two builds of one state are equal.
    let build =
        build.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUSTFLAGS", "-C link-arg=-Wl,--no-insert-timestamp");
    let sysroot = cmd!(sh, "rustc --print sysroot").quiet().read().context("failed to ask rustc")?;
    if Path::new(&sysroot).join("lib/rustlib").join(WINDOWS).is_dir() {
        return Ok(build);
    }
    ensure!(
        Path::new(DEBIAN_SOURCES).is_file() && runs(DEBIAN_RUSTC),
        "no Rust library for {WINDOWS}: rustup target add {WINDOWS}, or install rustc-web and rust-web-src"
    );
    // A library that is made small takes a tenth off the program.
    let library = ["-Z", "build-std=std,panic_abort", "-Z", "build-std-features=optimize_for_size"];
    Ok(build.args(library).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1"))
}

/// The repository's root: where this crate's folder is.
pub(crate) fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("the ci crate lies inside the workspace")
}
