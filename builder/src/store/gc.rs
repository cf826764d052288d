//! What keeps images, what removes them, and whether they are still what they were.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::staging::{hash_file, size_of};
use super::{Dropped, Store, StoreError, names_in, short_list};
use crate::image::Image;
use crate::key::{Key, hex};

/// A downloaded package that no build wanted for so long is dropped by `gc`.
const PACKAGE_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The extension of an image's folder while it is being removed.
pub(super) const REMOVED: &str = "removed";

/// What garbage collection did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// What dead builders had left behind.
    pub dropped: Vec<Dropped>,
    /// Images that went.
    pub removed: Vec<Image>,
    /// Images that stayed.
    pub kept: usize,
    /// Bytes that are free again, downloaded packages included.
    pub bytes: u64,
}

/// What a full check of one image found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The image.
    pub key: Key,
    /// Bytes read.
    pub bytes: u64,
    /// What is not as the manifest says; empty means whole.
    pub faults: Vec<Fault>,
}

/// One file that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file's name.
    pub name: String,
    /// What is wrong, as a sentence's end.
    pub what: String,
}

/// A recipe whose last image is kept as long as the recipe's file exists.
#[derive(Debug, Serialize, Deserialize)]
struct Root {
    recipe: PathBuf,
    keys: Vec<Key>,
    /// The instance whose record `recipe` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
}

impl Store {
    /// Keeps `keys` and everything below them from being collected, as long as the file `recipe` exists. A recipe keeps
    /// what was built from it last; with `and_before` (while the new image is not there yet) also what it kept until now.
    ///
    /// # Errors
    /// When the store cannot be written. An unchanged root is not written.
    pub fn keep_for(&self, recipe: &Path, keys: &[Key], and_before: bool) -> Result<(), StoreError> {
        let recipe = fs::canonicalize(recipe).unwrap_or_else(|_| recipe.to_owned());
        let path = self.root_of(&recipe);
        let now = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Root>(&text).ok());
        let mut keys = keys.to_vec();
        if and_before {
            keys.extend(now.iter().flat_map(|root| root.keys.clone()));
        }
        if now.is_some_and(|root| root.keys == keys) {
            return Ok(());
        }
        self.write_root(&Root { recipe, keys, instance: None })
    }

    /// Keeps `keys` and everything below them for an instance, as long as its record exists; [`Store::rm`] names it.
    ///
    /// # Errors
    /// When the store cannot be written. An unchanged root is not written.
    pub fn keep_for_instance(&self, name: &str, record: &Path, keys: &[Key]) -> Result<(), StoreError> {
        let recipe = fs::canonicalize(record).unwrap_or_else(|_| record.to_owned());
        let root = Root { recipe, keys: keys.to_vec(), instance: Some(name.to_owned()) };
        let known = fs::read_to_string(self.root_of(&root.recipe)).unwrap_or_default();
        if serde_json::from_str::<Root>(&known)
            .is_ok_and(|known| known.keys == root.keys && known.instance == root.instance)
        {
            return Ok(());
        }
        self.write_root(&root)
    }

    /// Ends what [`Store::keep_for_instance`] began; a record that is gone keeps nothing in any case.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_instance(&self, record: &Path) -> Result<(), StoreError> {
        // the folder above may be renamed already, so the path itself cannot be made canonical
        let above = record.parent().and_then(Path::parent).and_then(|above| fs::canonicalize(above).ok());
        let below = record.parent().and_then(Path::file_name).zip(record.file_name());
        let (Some(above), Some((folder, file))) = (above, below) else { return Ok(()) };
        let path = self.root_of(&above.join(folder).join(file));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn root_of(&self, recipe: &Path) -> PathBuf {
        self.dir.join("roots").join(hex(&Sha256::digest(recipe.as_os_str().as_encoded_bytes())))
    }

    fn write_root(&self, root: &Root) -> Result<(), StoreError> {
        let (dir, path) = (self.dir.join("roots"), self.root_of(&root.recipe));
        let text = serde_json::to_string(root).expect("a path and keys are plain values");
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(StoreError::io("write", &path))?;
        file.write_all(text.as_bytes()).map_err(StoreError::io("write", &path))?;
        file.persist(&path).map_err(|error| StoreError::io("write", &path)(error.error))?;
        Ok(())
    }

    /// The instances whose disks lie on `key`, directly or through other images.
    fn instances_on(&self, key: &Key, images: &[Image]) -> Result<Vec<String>, StoreError> {
        let parent_of = |key: &Key| {
            images
                .iter()
                .find(|image| image.manifest.key == *key)
                .and_then(|image| image.manifest.parent.clone())
        };
        let lies_on =
            |top: &Key| std::iter::successors(Some(top.clone()), parent_of).any(|below| below == *key);
        let mut names: Vec<String> = self
            .read_roots()?
            .into_iter()
            .filter(|root| root.keys.iter().any(lies_on))
            .filter_map(|root| root.instance)
            .collect();
        names.sort();
        Ok(names)
    }

    /// What the recipes that were built here keep. Those whose file is gone keep nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn roots(&self) -> Result<Vec<(PathBuf, Vec<Key>)>, StoreError> {
        Ok(self.read_roots()?.into_iter().map(|root| (root.recipe, root.keys)).collect())
    }

    /// The recipes that have this image: what was built here, and is there still. The one that came to it last is first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn recipes_of(&self, key: &Key) -> Result<Vec<PathBuf>, StoreError> {
        let of_recipe = |root: &Root| root.instance.is_none() && root.keys.contains(key);
        let since =
            |recipe: &PathBuf| fs::metadata(self.root_of(recipe)).and_then(|facts| facts.modified()).ok();
        let roots = self.read_roots()?.into_iter().filter(of_recipe);
        let mut recipes: Vec<PathBuf> = roots.map(|root| root.recipe).collect();
        recipes.sort_by_cached_key(|recipe| std::cmp::Reverse(since(recipe)));
        Ok(recipes)
    }

    fn read_roots(&self) -> Result<Vec<Root>, StoreError> {
        let dir = self.dir.join("roots");
        let mut roots = Vec::new();
        for name in names_in(&dir)? {
            let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
            if let Ok(root) = serde_json::from_str::<Root>(&text)
                && root.recipe.exists()
            {
                roots.push(root);
            }
        }
        Ok(roots)
    }

    /// Removes every image that neither `roots` nor a recipe that was built here needs, and packages that no build
    /// wanted for a month. With `dry_run` nothing is touched.
    ///
    /// # Errors
    /// When something cannot be read or removed.
    pub fn gc(&self, roots: &[Key], dry_run: bool) -> Result<Collected, StoreError> {
        let _removing = if dry_run { None } else { self.removing()? };
        let dropped = if dry_run { Vec::new() } else { self.sweep()? };
        let (images, _) = self.images()?;
        let mut needed: HashSet<Key> = HashSet::new();
        let mut open: Vec<Key> =
            roots.iter().cloned().chain(self.roots()?.into_iter().flat_map(|(_, keys)| keys)).collect();
        while let Some(key) = open.pop() {
            if needed.insert(key.clone()) {
                open.extend(
                    images
                        .iter()
                        .filter(|image| image.manifest.key == key)
                        .filter_map(|i| i.manifest.parent.clone()),
                );
            }
        }
        let (kept, removed): (Vec<_>, Vec<_>) =
            images.into_iter().partition(|image| needed.contains(&image.manifest.key));
        let mut collected =
            Collected { dropped, bytes: self.old_packages(dry_run)?, kept: kept.len(), removed };
        // The newest first: what lies on top goes before what it lies on, so an interruption leaves no orphan.
        for image in collected.removed.iter().rev() {
            collected.bytes += image.bytes();
            if !dry_run {
                remove_image(&image.dir)?;
            }
        }
        Ok(collected)
    }

    /// Removes one image. Images on top of it must go first.
    ///
    /// # Errors
    /// When it is not there, something lies on top of it, or it cannot be removed.
    pub fn rm(&self, key: &Key) -> Result<u64, StoreError> {
        let _removing = self.removing()?;
        let dir = self.image_dir(key);
        if !dir.exists() {
            return Err(StoreError::NoSuchImage(key.short().to_owned()));
        }
        let (images, _) = self.images()?;
        let users = self.instances_on(key, &images)?;
        if !users.is_empty() {
            return Err(StoreError::Used { key: key.clone(), users: users.join(", ") });
        }
        let on_top = images.into_iter().filter(|image| image.manifest.parent.as_ref() == Some(key));
        let on_top: Vec<Key> = on_top.map(|image| image.manifest.key).collect();
        if !on_top.is_empty() {
            return Err(StoreError::HasChildren { key: key.clone(), children: short_list(&on_top) });
        }
        let bytes = size_of(&dir);
        remove_image(&dir)?;
        Ok(bytes)
    }

    /// Reads every file of one image and compares it with the manifest.
    ///
    /// # Errors
    /// When the image is not there or its manifest cannot be used.
    pub fn verify(&self, key: &Key) -> Result<Verified, StoreError> {
        let image = self.read(key)?.ok_or_else(|| StoreError::NoSuchImage(key.short().to_owned()))?;
        let mut verified = Verified { key: key.clone(), bytes: 0, faults: Vec::new() };
        let mut fault =
            |name: &str, what: String| verified.faults.push(Fault { name: name.to_owned(), what });
        if let Some(parent) = &image.manifest.parent
            && !self.image_dir(parent).exists()
        {
            fault("disk.qcow2", format!("the layer below, {}, is not in the store", parent.short()));
        }
        let mut bytes = 0;
        for file in &image.manifest.files {
            match hash_file(&image.dir.join(&file.name)) {
                Ok((read, sha256)) => {
                    bytes += read;
                    if sha256 != file.sha256 {
                        fault(&file.name, "its contents have changed since it was published".to_owned());
                    }
                }
                Err(error) => fault(&file.name, format!("it cannot be read: {error}")),
            }
        }
        verified.bytes = bytes;
        Ok(verified)
    }

    fn old_packages(&self, dry_run: bool) -> Result<u64, StoreError> {
        let mut bytes = 0;
        let cache = self.dir.join("apt-cache");
        for suite in names_in(&cache)? {
            for name in names_in(&cache.join(&suite))? {
                let path = cache.join(&suite).join(name);
                let Ok(facts) = fs::metadata(&path) else { continue };
                let age = facts.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
                if facts.is_file() && age.is_some_and(|age| age > PACKAGE_KEPT) {
                    bytes += facts.len();
                    if !dry_run {
                        fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                    }
                }
            }
        }
        Ok(bytes)
    }
}

/// The folder is renamed away first, so that a half-removed image is never found; `sweep` finishes what was interrupted.
fn remove_image(dir: &Path) -> Result<(), StoreError> {
    let aside = dir.with_extension(REMOVED);
    fs::rename(dir, &aside).map_err(StoreError::io("remove", dir))?;
    fs::remove_dir_all(&aside).map_err(StoreError::io("remove", &aside))
}
