//! Instances that travel: a backup that needs no store, and the way back in. And disks that grow.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use no43_builder::image::Image;
use no43_builder::store::Store;

use super::create::private_dir;
use super::error::{InstanceError, file_error};
use super::record::{self, Record, System};
use super::{Instance, Instances, check_name, disk};

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Bytes on the disk.
    pub bytes: u64,
    /// How many disks, the system's included.
    pub disks: usize,
}

/// How an import went.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The instance that is there now.
    pub instance: Instance,
    /// It got a new UUID, MAC and serial numbers, since an instance here has the old ones.
    pub new_identity: bool,
}

impl Instance {
    /// Writes a copy that needs neither store nor image: disks flattened, variables, vTPM, identity.
    ///
    /// # Errors
    /// If it runs, `to` exists, or there is no room.
    pub fn backup(&self, to: &Path, image: Option<&Image>) -> Result<Moved, InstanceError> {
        let _held = self.hold()?;
        let taken = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                InstanceError::Refused(format!("{} is there already", to.display()))
            }
            _ => file_error("make", to)(error),
        };
        fs::create_dir(to).map_err(taken)?;
        let written = self.write_backup(to, image);
        if written.is_err() {
            let _ = fs::remove_dir_all(to);
        }
        written
    }

    fn write_backup(&self, to: &Path, image: Option<&Image>) -> Result<Moved, InstanceError> {
        let system_dir = to.join(record::SYSTEM);
        private_dir(&system_dir)?;
        flatten(&self.disk(), &system_dir.join(record::DISK))?;
        disk::mirror_file(&self.vars(), &system_dir.join(record::VARS)).map_err(file_error("copy", to))?;
        disk::copy_dir(&self.tpm(), &system_dir.join(record::TPM)).map_err(file_error("copy", to))?;
        let kernel = image.and_then(Image::direct_kernel);
        if let Some(kernel) = &kernel {
            for (from, name) in [(&kernel.kernel, record::KERNEL), (&kernel.initrd, record::INITRD)] {
                fs::copy(from, system_dir.join(name)).map_err(file_error("copy", from))?;
            }
        }
        System {
            image: None,
            below: Vec::new(),
            direct: kernel.map(|kernel| kernel.command_line).or_else(|| self.system.direct.clone()),
            snapshots: Vec::new(),
            restoring: None,
            ..self.system.clone()
        }
        .write(&system_dir)?;
        let own = self.record.disks.iter().filter(|kept| kept.path.is_none());
        let mut disks = 1;
        for kept in own {
            private_dir(&to.join(record::DISKS))?;
            flatten(&self.kept_disk(kept), &to.join(record::DISKS).join(format!("{}.qcow2", kept.name)))?;
            disks += 1;
        }
        self.record.write(to)?;
        Ok(Moved { bytes: disk::allocated(to), disks })
    }

    /// Makes the system disk, or a kept disk, larger. The guest sees it at its next start, and grows its file system itself.
    ///
    /// # Errors
    /// If it runs, there is no such disk, or the new size is smaller: that would cut a file system.
    pub fn resize(&mut self, which: Option<&str>, bytes: u64) -> Result<u64, InstanceError> {
        let _held = self.hold()?;
        let file = match which {
            None => self.disk(),
            Some(name) => {
                let kept = self.record.disks.iter().find(|kept| kept.name == name && kept.path.is_none());
                let kept = kept.ok_or_else(|| {
                    InstanceError::Refused(format!("instance '{}' keeps no disk '{name}'", self.name()))
                })?;
                self.kept_disk(kept)
            }
        };
        let now = disk::facts(&file)?.virtual_size;
        if bytes < now {
            return Err(InstanceError::Refused(format!(
                "{} has {} already: a smaller disk would cut the guest's file system",
                file.display(),
                crate::words::bytes(now)
            )));
        }
        let size = bytes.to_string();
        disk::qemu_img(
            "make the disk larger",
            [OsStr::new("resize"), "-q".as_ref(), file.as_os_str(), size.as_ref()],
        )?;
        if let Some(name) = which {
            self.record.disks.iter_mut().filter(|kept| kept.name == name).for_each(|kept| kept.bytes = bytes);
            self.save()?;
        }
        Ok(now)
    }
}

/// One file without a backing chain.
fn flatten(from: &Path, to: &Path) -> Result<(), InstanceError> {
    let what = format!("copy the disk {}", from.display());
    let args = ["convert", "-q", "-O", "qcow2"].map(OsStr::new);
    disk::qemu_img(&what, args.into_iter().chain([from.as_os_str(), to.as_os_str()])).map(drop)
}

impl Instances {
    /// Takes in a backup, or a folder that was copied from another host. It keeps its identity unless an instance here has
    /// the same.
    ///
    /// # Errors
    /// If the folder is no instance, the name is taken, or the image below a copied folder is not in `store`.
    pub fn import(&self, from: &Path, name: Option<&str>, store: &Store) -> Result<Imported, InstanceError> {
        let record = Record::read(from)?;
        let system = System::read(&from.join(record::SYSTEM))?;
        let name = name.unwrap_or(&record.name).to_owned();
        check_name(&name)?;
        let dir = self.dir().join(&name);
        if dir.exists() {
            return Err(InstanceError::Exists { name, dir });
        }
        if let Some(key) = &system.image
            && store.get(key)?.is_none()
        {
            let store = store.dir().to_owned();
            return Err(InstanceError::NoImage { name, key: key.short().to_owned(), store });
        }
        let (others, _) = self.list()?;
        let new_identity = others.iter().any(|other| other.record.uuid == record.uuid);
        fs::create_dir_all(self.dir()).map_err(file_error("make", self.dir()))?;
        let aside = self.aside();
        private_dir(&aside)?;
        let made = copy_instance(from, &aside, &record).and_then(|()| {
            let mut record =
                Record { name: name.clone(), host: record::this_host(), ephemeral: false, ..record };
            if new_identity {
                record.uuid = record::new_uuid();
                record.mac = record::new_mac();
                record.serial = record::new_serial();
            }
            record.write(&aside)?;
            check_chain(&aside, &system, store)?;
            disk::rename_new(&aside, &dir).map_err(file_error("make", &dir))
        });
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
        let instance = Instance::open(&dir)?;
        // learns where the image is here
        instance.ready(self, store)?;
        let instance = Instance::open(&dir)?;
        instance.protect(store)?;
        Ok(Imported { instance, new_identity })
    }
}

/// A header from elsewhere may name any file of this host as the one below: it is made to name the image, or must name none.
fn check_chain(dir: &Path, system: &System, store: &Store) -> Result<(), InstanceError> {
    let file = dir.join(record::SYSTEM).join(record::DISK);
    let image = system.image.as_ref().map(|key| store.get(key)).transpose()?.flatten();
    match image {
        Some(image) => disk::rebase(&file, &image.disk())?,
        None => no_backing(&file)?,
    }
    let kept = dir.join(record::DISKS);
    fs::read_dir(&kept).into_iter().flatten().flatten().try_for_each(|entry| no_backing(&entry.path()))
}

fn no_backing(file: &Path) -> Result<(), InstanceError> {
    let facts = disk::facts(file)?;
    match facts.backing_filename {
        None if facts.format == "qcow2" && !facts.has_data_file() => Ok(()),
        _ => Err(InstanceError::Damaged {
            path: file.to_owned(),
            why: "it is not a qcow2 disk that stands alone".into(),
        }),
    }
}

/// Disks are copied by the file system, which shares blocks where it can.
fn copy_instance(from: &Path, to: &Path, record: &Record) -> Result<(), InstanceError> {
    disk::copy_dir(&from.join(record::SYSTEM), &to.join(record::SYSTEM)).map_err(file_error("copy", from))?;
    for kept in record.disks.iter().filter(|kept| kept.path.is_none()) {
        check_name(&kept.name)?;
        let file = Path::new(record::DISKS).join(format!("{}.qcow2", kept.name));
        private_dir(&to.join(record::DISKS))?;
        disk::copy_synced(&from.join(&file), &to.join(&file)).map_err(file_error("copy", from))?;
    }
    Ok(())
}
