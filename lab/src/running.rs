//! Which labs run on this host: a directory for each, with a record and a lock.
//!
//! Two directories belong to a lab. Sockets and the record are in the state directory, where paths are short; the disk
//! overlay and the share are in the store, where there is room. The lock is held by the no43 that uses the lab right now;
//! a lab that is `up` runs without anybody holding it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use no43_machine::RunDirs;
use no43_machine::process::is_running;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// What a lab's directory says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabRecord {
    /// The lab's name: the profile's for `up`, with a number for a run's own lab.
    pub name: String,
    /// The profile.
    pub profile: String,
    /// Belongs to one `run` and ends with it.
    pub private: bool,
    /// Where the overlay and the share are.
    pub work: PathBuf,
    /// Seconds since 1970.
    pub since: u64,
}

/// One line of `no43 lab ls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// What was written down at its start.
    pub record: LabRecord,
    /// Its QEMU; `None` if that is gone.
    pub pid: Option<u32>,
    /// Some no43 uses it right now.
    pub busy: bool,
}

/// A lab's directory, with its lock held.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) record: LabRecord,
    pub(crate) dirs: RunDirs,
    /// Held until this is dropped, or this process dies.
    _lock: File,
}

/// The directory of all labs under a state directory.
#[derive(Debug, Clone)]
pub(crate) struct Places(PathBuf);

impl Places {
    pub(crate) fn under(state: &Path) -> Places {
        Places(state.join("labs"))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes and locks the place of a new lab.
    pub(crate) fn create(
        &self,
        name: &str,
        profile: &str,
        private: bool,
        store: &Path,
    ) -> Result<Place, LabError> {
        let dir = self.dir(name);
        make_dir(&dir)?;
        let lock = self.lock(name)?;
        if let Some(pid) = qemu_of(&dir) {
            return Err(LabError::AlreadyUp { name: name.to_owned(), pid });
        }
        if let Some(old) = read_record(&dir) {
            remove_work(&old);
        }
        let work = store.join("labs").join("running").join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&work);
        make_dir(&work)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = LabRecord { name: name.to_owned(), profile: profile.to_owned(), private, work, since };
        let path = dir.join("lab.json");
        let text = serde_json::to_vec_pretty(&record).unwrap_or_default();
        fs::write(&path, text).map_err(LabError::file("write", path))?;
        Ok(Place { record, dirs: RunDirs::at(dir), _lock: lock })
    }

    /// Locks the place of a lab that is up.
    pub(crate) fn open(&self, name: &str) -> Result<Place, LabError> {
        let dir = self.dir(name);
        let not_up = || LabError::NotUp { name: name.to_owned() };
        if read_record(&dir).is_none() {
            return Err(not_up());
        }
        let lock = self.lock(name)?;
        // Read again: the lab may have ended while somebody else held the lock.
        let record = read_record(&dir).ok_or_else(not_up)?;
        Ok(Place { record, dirs: RunDirs::at(dir), _lock: lock })
    }

    fn lock(&self, name: &str) -> Result<File, LabError> {
        let path = self.dir(name).join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(LabError::file("open", &path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(LabError::InUse { name: name.to_owned(), pid: pid.trim().to_owned() });
        }
        // For the message above only; the lock itself is the kernel's.
        let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        let _ = writeln!(file, "{}", std::process::id());
        Ok(file)
    }

    /// All labs, those that run and those that died, by name.
    pub(crate) fn all(&self) -> Vec<Running> {
        let mut all: Vec<Running> = names(&self.0)
            .into_iter()
            .filter_map(|name| {
                let dir = self.dir(&name);
                Some(Running { record: read_record(&dir)?, pid: qemu_of(&dir), busy: is_locked(&dir) })
            })
            .collect();
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    /// Removes what dead labs left. A run's own lab whose no43 is gone is ended as well: nobody will ever use it. Returns
    /// a sentence for each.
    pub(crate) fn sweep(&self) -> Vec<String> {
        let mut said = Vec::new();
        for lab in self.all().into_iter().filter(|lab| !lab.busy && (lab.pid.is_none() || lab.record.private))
        {
            // Somebody may have taken it since we looked.
            let Ok(place) = self.open(&lab.record.name) else { continue };
            if let Ok(machine) = no43_machine::Machine::adopt(place.dirs.dir()) {
                if !place.record.private {
                    continue;
                }
                machine.kill();
            }
            said.push(format!("lab '{}' was left by a no43 that is gone: removed", lab.record.name));
            place.remove();
        }
        said
    }
}

impl Place {
    /// The disk overlay of the lab host.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.record.work.join("overlay.qcow2")
    }

    /// The directory that is shared with the lab host, writable for it.
    pub(crate) fn share(&self) -> PathBuf {
        self.record.work.join("share")
    }

    /// What the lab host's kernel says.
    pub(crate) fn console(&self) -> PathBuf {
        self.record.work.join("console.log")
    }

    /// Removes both directories; nothing in them is wanted any more.
    pub(crate) fn remove(&self) {
        remove_work(&self.record);
        let _ = fs::remove_dir_all(self.dirs.dir());
    }
}

/// Only ever a directory that [`Places::create`] named: the record is a file that somebody may have written to.
fn remove_work(record: &LabRecord) {
    let mut above = record.work.ancestors().skip(1).filter_map(Path::file_name);
    if above.next().is_some_and(|name| name == "running") && above.next().is_some_and(|name| name == "labs") {
        let _ = fs::remove_dir_all(&record.work);
    }
}

fn read_record(dir: &Path) -> Option<LabRecord> {
    serde_json::from_slice(&fs::read(dir.join("lab.json")).ok()?).ok()
}

fn qemu_of(dir: &Path) -> Option<u32> {
    let record = RunDirs::at(dir).read_record().ok()?;
    is_running(record.pid, record.start_time).then_some(record.pid)
}

fn is_locked(dir: &Path) -> bool {
    File::open(dir.join("lock"))
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), LabError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(LabError::file("make the directory", dir))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_used_by_one_at_a_time_and_named_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::under(&dir.path().join("state"));
        let place = places.create("one-card", "one-card", false, dir.path()).unwrap();
        let other = places.open("one-card").unwrap_err().to_string();
        assert_eq!(
            other,
            format!(
                "lab 'one-card' is in use by process {}; wait for it, or use a lab of your own: no43 lab run --private",
                std::process::id()
            )
        );
        assert!(places.all()[0].busy);
        drop(place);
        assert!(!places.all()[0].busy);
        assert_eq!(places.open("one-card").unwrap().record.profile, "one-card");
        assert!(matches!(places.open("three-cards"), Err(LabError::NotUp { .. })));
    }

    #[test]
    fn what_dead_labs_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::under(&dir.path().join("state"));
        let place = places.create("x", "one-card", true, dir.path()).unwrap();
        let work = place.record.work.clone();
        assert!(places.sweep().is_empty(), "it is in use");
        drop(place);
        assert_eq!(places.sweep(), ["lab 'x' was left by a no43 that is gone: removed"]);
        assert!(!work.exists());
        assert!(places.all().is_empty());
    }

    #[test]
    fn a_record_cannot_name_what_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("home");
        fs::create_dir(&victim).unwrap();
        let record = LabRecord {
            name: "x".into(),
            profile: "y".into(),
            private: true,
            work: victim.clone(),
            since: 0,
        };
        remove_work(&record);
        assert!(victim.exists());
    }
}
