//! The lab host's memory and disk, saved together after its first boot: every later lab is restored in a third of a second.
//!
//! A snapshot is a pair: QEMU's state file and the disk overlay frozen at the same stop. A restore gets a fresh overlay on
//! the frozen one; memory that is newer than its disk reads files as garbage without any message. The key holds everything
//! that must be the same: QEMU's version, its arguments, the image, and what was done inside before saving.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::LabError;
use crate::running::make_dir;

const STATE: &str = "state";
const FROZEN: &str = "frozen.qcow2";
const ABOUT: &str = "snapshot.json";

/// The directory of all snapshots, in the store.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots(PathBuf);

/// One snapshot that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    dir: PathBuf,
}

/// A snapshot in the making; removed if it is not published.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    target: PathBuf,
    /// Two labs that boot at the same time make the snapshot one after the other.
    _lock: File,
}

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The profile's name: its older snapshots are dropped when a new one is there.
    pub(crate) profile: String,
    /// The lab host's image.
    pub(crate) image: String,
    /// What QEMU says about itself.
    pub(crate) qemu: String,
}

/// The key of a snapshot.
pub(crate) fn key(about: &About, argv: &[String], inside: &str) -> String {
    let mut hash = Sha256::new();
    let facts = [about.image.as_str(), about.qemu.as_str(), inside];
    for part in facts.into_iter().chain(argv.iter().map(String::as_str)) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What QEMU says about its version and build.
pub(crate) fn qemu_version(qemu: &Path) -> Result<String, LabError> {
    let failed = |why: String| LabError::Program { program: qemu.display().to_string(), why };
    let output = Command::new(qemu).arg("--version").output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
    if output.status.success() && !text.is_empty() {
        Ok(text)
    } else {
        Err(failed("it tells no version".to_owned()))
    }
}

impl Snapshots {
    pub(crate) fn in_store(store: &Path) -> Snapshots {
        Snapshots(store.join("labs"))
    }

    /// The snapshot with this key, if there is one.
    pub(crate) fn find(&self, key: &str) -> Option<Pair> {
        let pair = Pair { dir: self.0.join(key) };
        (pair.state().is_file() && pair.frozen().is_file()).then_some(pair)
    }

    /// Begins a snapshot: waits for whoever makes the same one.
    pub(crate) fn begin(&self, key: &str) -> Result<Staging, LabError> {
        make_dir(&self.0)?;
        let path = self.0.join(format!(".{key}.lock"));
        let lock = File::create(&path).map_err(LabError::file("make", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| LabError::file("lock", &path)(error.into()))?;
        let dir = self.0.join(format!(".{key}.new"));
        let _ = fs::remove_dir_all(&dir);
        make_dir(&dir)?;
        Ok(Staging { dir, target: self.0.join(key), _lock: lock })
    }

    /// Removes a snapshot that could not be restored.
    pub(crate) fn remove(&self, pair: &Pair) {
        let _ = fs::remove_dir_all(&pair.dir);
    }

    /// Removes the older snapshots of the same profile. A lab that runs on one keeps its files open.
    fn prune(&self, about: &About, keep: &Path) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let dir = entry.path();
            let other =
                fs::read(dir.join(ABOUT)).ok().and_then(|text| serde_json::from_slice::<About>(&text).ok());
            if dir != keep && other.is_some_and(|other| other.profile == about.profile) {
                let _ = fs::remove_dir_all(dir);
            }
        }
    }
}

impl Pair {
    /// QEMU's state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The disk at the same moment.
    pub(crate) fn frozen(&self) -> PathBuf {
        self.dir.join(FROZEN)
    }

    /// What both take on the disk, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        [self.state(), self.frozen()].iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum()
    }
}

impl Staging {
    /// Where the state goes.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The overlay that the lab host boots on and that is frozen afterwards.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join(FROZEN)
    }

    /// Makes the pair visible, whole or not at all. QEMU must be gone.
    pub(crate) fn publish(self, snapshots: &Snapshots, about: &About) -> Result<Pair, LabError> {
        let path = self.dir.join(ABOUT);
        let text = serde_json::to_vec_pretty(about).unwrap_or_default();
        fs::write(&path, text).map_err(LabError::file("write", &path))?;
        for path in [self.state(), self.disk(), path, self.dir.clone()] {
            File::open(&path).and_then(|file| file.sync_all()).map_err(LabError::file("write out", path))?;
        }
        let _ = fs::remove_dir_all(&self.target);
        fs::rename(&self.dir, &self.target).map_err(LabError::file("publish", &self.target))?;
        let _ = File::open(&snapshots.0).and_then(|dir| dir.sync_all());
        snapshots.prune(about, &self.target);
        Ok(Pair { dir: self.target.clone() })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Makes a qcow2 overlay. The backing file is named relatively, so that the store can be moved.
pub(crate) fn make_overlay(overlay: &Path, backing: &Path) -> Result<(), LabError> {
    let backing = backing.canonicalize().map_err(LabError::file("find", backing))?;
    let dir = overlay.parent().unwrap_or(Path::new("/"));
    let dir = dir.canonicalize().map_err(LabError::file("find", dir))?;
    let failed = |why: String| LabError::Program { program: "qemu-img".to_owned(), why };
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(relative(&dir, &backing))
        .arg(overlay)
        .output()
        .map_err(|error| failed(format!("{error} (package qemu-utils)")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// `to` as seen from the directory `from`; both absolute and without links.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    from[common..].iter().map(|_| Component::ParentDir).chain(to[common..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(profile: &str) -> About {
        About { profile: profile.into(), image: "i".into(), qemu: "QEMU emulator version 10.0.2".into() }
    }

    fn publish(snapshots: &Snapshots, profile: &str, key: &str) -> Pair {
        let staging = snapshots.begin(key).unwrap();
        fs::write(staging.state(), "state").unwrap();
        fs::write(staging.disk(), "disk").unwrap();
        assert_eq!(snapshots.find(key), None, "not before it is published");
        staging.publish(snapshots, &about(profile)).unwrap()
    }

    #[test]
    fn a_pair_is_there_whole_or_not_at_all_and_replaces_the_profiles_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::in_store(dir.path());
        publish(&snapshots, "one-card", "aa");
        let pair = publish(&snapshots, "three-cards", "bb");
        assert_eq!(snapshots.find("bb"), Some(pair.clone()));
        assert_eq!(pair.bytes(), 9);
        publish(&snapshots, "one-card", "cc");
        assert_eq!(snapshots.find("aa"), None);
        assert!(snapshots.find("bb").is_some());
        drop(snapshots.begin("dd").unwrap());
        assert_eq!(snapshots.find("dd"), None);
        assert!(!dir.path().join("labs/.dd.new").exists());
    }

    #[test]
    fn everything_that_must_be_the_same_is_in_the_key() {
        let argv = |word: &str| vec!["-m".to_owned(), word.to_owned()];
        let base = key(&about("p"), &argv("3000M"), "script");
        assert_eq!(base, key(&about("other name"), &argv("3000M"), "script"));
        let other = About { qemu: "QEMU emulator version 11".into(), ..about("p") };
        let image = About { image: "j".into(), ..about("p") };
        for different in [
            key(&other, &argv("3000M"), "script"),
            key(&image, &argv("3000M"), "script"),
            key(&about("p"), &argv("2000M"), "script"),
            key(&about("p"), &argv("3000M"), "script2"),
        ] {
            assert_ne!(base, different);
        }
    }

    #[test]
    fn backing_files_are_named_from_where_the_overlay_is() {
        let cases = [
            ("/s/labs/k", "/s/images/i/disk.qcow2", "../../images/i/disk.qcow2"),
            ("/a", "/a/b", "b"),
            ("/a/b", "/c", "../../c"),
        ];
        for (from, to, expected) in cases {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(expected));
        }
    }
}
