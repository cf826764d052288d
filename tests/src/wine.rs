//! A Windows for programs only: Wine with a folder of its own, made once for a suite and ended after each case.
//!
//! The folder (a *prefix*) takes 8 s and 700 MB, so cases share it and must not touch what others look at; what runs
//! in it is private to a case. Wine's server outlives its programs by a few seconds, and its services until they are
//! ended, so [`Wine`] ends them by that prefix's own `wineserver -k`.

use crate::programs;
use crate::run::{Run, Running};
use crate::scene::Scene;
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// See [`Wine::of`]; the first case of a suite makes it.
static PREFIX: Mutex<Option<tempfile::TempDir>> = Mutex::new(None);

/// Making the prefix took 8 s; a busy machine may take long.
const PREFIX_LIMIT: u64 = 180;

/// A running Wine of one case.
#[derive(Debug)]
pub struct Wine<'a> {
    scene: &'a Scene,
    prefix: PathBuf,
}

impl<'a> Wine<'a> {
    /// The suite's prefix, with the case's folder as drive `F:`.
    pub fn of(scene: &'a Scene) -> Result<Self> {
        let mut made = PREFIX.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let prefix = match &*made {
            Some(dir) => dir.path().to_owned(),
            None => {
                let dir = tempfile::Builder::new().prefix("n43-wine-").tempdir()?;
                let path = dir.path().to_owned();
                // kept before it is filled: whatever happens, `clean_up` removes it
                *made = Some(dir);
                Self { scene, prefix: path.clone() }.wine(["wineboot", "--init"]).limit(PREFIX_LIMIT).ok()?;
                path
            }
        };
        let wine = Self { scene, prefix };
        wine.map_drive("f:", &scene.work())?;
        Ok(wine)
    }

    /// Removes the suite's prefix; a static is never dropped.
    pub fn clean_up() {
        drop(PREFIX.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    /// A run of any program of Wine.
    pub fn wine<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.environment(self.scene.run("wine")).args(args)
    }

    /// A run of `no43-guest.exe`.
    pub fn guest(&self, args: &[&str]) -> Result<Run> {
        Ok(self.environment(self.scene.run("wine")).args([programs::windows_guest()?]).args(args))
    }

    /// Starts `no43-guest.exe` and returns at once.
    pub fn start_guest(&self, args: &[&str]) -> Result<Running> {
        self.guest(args)?.start()
    }

    fn environment(&self, run: Run) -> Run {
        // Without its own browser and .NET, which it would want to download; without its many warnings.
        run.env("WINEPREFIX", &self.prefix)
            .env("WINEDEBUG", "-all")
            .env("WINEDLLOVERRIDES", "mscoree,mshtml,winemenubuilder.exe=")
            .env("LANG", "C.UTF-8")
    }

    /// Lets a drive (`f:`) be a folder of this machine.
    pub fn map_drive(&self, name: &str, target: &Path) -> Result<()> {
        let link = self.prefix.join("dosdevices").join(name);
        let _ = std::fs::remove_file(&link); // of the case before
        std::os::unix::fs::symlink(target, &link).with_context(|| format!("failed to map {name}"))
    }

    /// Lets ports (`COM1`) be devices of this machine. Wine looks at this when it starts.
    pub fn map_ports(&self, ports: &[(&str, &Path)]) -> Result<()> {
        for (name, device) in ports {
            let device = device.display().to_string();
            self.wine(["reg", "add", r"HKLM\Software\Wine\Ports", "/f", "/v", name, "/d", &device]).ok()?;
        }
        self.cut_power()
    }

    /// Where a path below `C:` lies on this machine.
    pub fn drive_c(&self, path: &str) -> PathBuf {
        self.prefix.join("drive_c").join(path)
    }

    /// What `reg query` says about a value, in Wine's own words.
    pub fn registry(&self, key: &str, name: &str) -> Result<String> {
        let seen = self.wine(["reg", "query", key, "/v", name]).done()?;
        let line = seen.stdout.lines().find(|line| line.trim_start().starts_with(name));
        Ok(line.unwrap_or("not there").split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// As if the machine lost its power: every process of the prefix is gone when this returns.
    pub fn cut_power(&self) -> Result<()> {
        let server =
            |argument: &str| self.environment(self.scene.run("wineserver")).args([argument]).limit(60);
        server("-k").done()?; // exit code 1: nothing ran
        server("-w").done()?;
        Ok(())
    }
}

/// A screen in memory, which Wine needs for Direct3D; ended with the value.
#[derive(Debug)]
pub struct Screen {
    server: std::process::Child,
    name: String,
}

impl Screen {
    /// Starts `Xvfb`, with the old woven ground that shows that somebody looks at it, on a number that it finds itself, and waits until it serves.
    pub fn start() -> Result<Self> {
        let mut command = Command::new("Xvfb");
        command.args(["-displayfd", "1", "-screen", "0", "640x480x24", "-retro", "-nolisten", "tcp"]);
        let server = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut screen = Self { server: server.context("failed to start Xvfb")?, name: String::new() };
        let stdout = screen.server.stdout.take().context("Xvfb has no output")?;
        // The number comes when it serves; the end of the output, when it cannot.
        let mut number = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut number)?;
        anyhow::ensure!(number.ends_with('\n'), "Xvfb ended without a screen");
        screen.name = format!(":{}", number.trim());
        Ok(screen)
    }

    /// Lets a program use it.
    pub fn of(&self, run: Run) -> Run {
        run.env("DISPLAY", &self.name)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Drop for Wine<'_> {
    fn drop(&mut self) {
        for argument in ["-k", "-w"] {
            let mut command = Command::new("wineserver");
            command.arg(argument).env("WINEPREFIX", &self.prefix).stdin(Stdio::null()).stderr(Stdio::null());
            let _ = command.status();
        }
    }
}
