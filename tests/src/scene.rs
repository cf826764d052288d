//! The surroundings of one case: its own folders, its own `no43` settings, and a watch over what it leaves running.

use crate::programs;
use crate::run::Run;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set in the environment of everything that a case starts.
const MARKER: &str = "NO43_TEST_SCENE";

/// Held while the lock beside the shipped recipes is looked for and made: two cases at once need it at the same moment.
static LOCK_IS_MADE: Mutex<()> = Mutex::new(());

/// Processes may need a moment to end after their parent: a build's watchdog gives mmdebstrap 15 s to clean up.
const GONE_LIMIT: Duration = Duration::from_secs(20);

/// One case's surroundings. Everything in its folder is removed at the end.
#[derive(Debug)]
pub struct Scene {
    dir: tempfile::TempDir,
    marker: String,
    store: PathBuf,
}

impl Scene {
    /// A scene with an empty store of its own.
    pub fn new(name: &str) -> Result<Self> {
        let short: String = name.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        // short, because sockets lie below it and a socket's path may have 107 bytes
        let dir = tempfile::Builder::new()
            .prefix(&format!("n43-{short}-"))
            .tempdir()
            .context("failed to make a scene")?;
        let marker = dir.path().display().to_string();
        for sub in ["state", "work", "home"] {
            std::fs::create_dir(dir.path().join(sub))?;
        }
        let store = dir.path().join("store");
        Ok(Self { dir, marker, store })
    }

    /// The same scene with the person's own store, where images that take minutes to build stay for the next time.
    pub fn with_shared_store(mut self) -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        if let Some(store) =
            std::env::var_os("NO43_STORE").map(PathBuf::from).or_else(|| Some(cache?.join("no43")))
        {
            self.store = store;
        }
        self
    }

    /// A folder for the case's own files; relative paths of `no43` are below it.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The store that this scene's `no43` uses.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Where this scene's `no43` keeps leases and its journal.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Writes a file below [`Scene::work`] and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.work().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Puts the shipped recipes, with their lock, into the scene's `recipes` folder: a case may add its own beside them.
    ///
    /// The lock beside the repository's recipes is made first where there is none, so that all cases, and the demo, use
    /// the same images.
    pub fn shipped_recipes(&self) -> Result<()> {
        let shipped = programs::root().join("recipes");
        let _one_at_a_time = LOCK_IS_MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if !shipped.join("no43.lock").exists() {
            let names = ["lab-host.toml", "lab-guest.toml", "debian.toml"].map(|n| shipped.join(n));
            self.run(programs::no43()?).args(["lock"]).args(names).limit(120).ok()?;
        }
        copy_files(&shipped, &self.work().join("recipes"))
    }

    /// A run of any program in this scene.
    pub fn run(&self, program: impl Into<PathBuf>) -> Run {
        Run::new(program)
            .dir(&self.work())
            .env(MARKER, &self.marker)
            .env("NO43_STORE", &self.store)
            .env("NO43_STATE", self.state())
            .env("HOME", self.dir.path().join("home"))
            .env("NO43_RECIPES", programs::root().join("recipes"))
            .env("NO_COLOR", "1")
    }

    /// A run of `no43` in this scene.
    pub fn no43(&self, args: &[&str]) -> Result<Run> {
        let guest = programs::guest().unwrap_or_default();
        Ok(self.run(programs::no43()?).args(args).env("NO43_GUEST", guest))
    }

    /// Every process that carries this scene's marker: what the case started and what came of it.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let wanted = format!("{MARKER}={}", self.marker);
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
        };
        let name = |pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").chars().take(120).collect()
        };
        pids.filter(ours).map(|pid| (pid, name(pid))).collect()
    }

    /// Ends the scene: whatever is still running after a moment is killed, and an error.
    pub fn end(self) -> Result<()> {
        self.end_within(GONE_LIMIT)
    }

    fn end_within(self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !self.processes().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let left = self.processes();
        self.kill_all();
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = left.iter().map(|(pid, name)| format!("    {pid} {name}")).collect();
        bail!("{} processes were left running:\n{}", left.len(), names.join("\n"))
    }

    /// Kills every process of this scene, also those that start while it looks.
    pub fn kill_all(&self) {
        for _ in 0..50 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left.iter().filter_map(|(pid, _)| Pid::from_raw(*pid)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Copies a folder of small files, with what is below it.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("failed to list {}", from.display()))? {
        let (from, to) =
            (entry.as_ref().map(std::fs::DirEntry::path), entry.as_ref().map(|e| to.join(e.file_name())));
        let (Ok(from), Ok(to)) = (from, to) else { continue };
        if from.is_dir() {
            copy_files(&from, &to)?;
        } else {
            std::fs::copy(&from, &to).with_context(|| format!("failed to copy {}", from.display()))?;
        }
    }
    Ok(())
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_left_behind_is_named_and_killed() {
        let scene = Scene::new("left behind").expect("a scene");
        let work = scene.work();
        scene
            .run("/bin/sh")
            .args(["-c", "setsid sleep 4242 </dev/null >/dev/null 2>&1 &"])
            .ok()
            .expect("it runs");
        let pids = scene.processes();
        assert_eq!(pids.len(), 1, "{pids:?}");
        let error = scene.end_within(Duration::from_millis(200)).expect_err("one is left").to_string();
        assert!(error.contains("sleep 4242"), "{error}");
        assert!(!Path::new(&format!("/proc/{}/exe", pids[0].0)).exists(), "it was killed");
        assert!(!work.exists(), "its folder is removed");
    }
}
