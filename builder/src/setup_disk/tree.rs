//! The contents of a set-up disk as a tree, and the same laid out flat: folders with their entries, files with their sizes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::names::{self, ShortNames};
use super::{SetupDiskError, Source};

/// A file of FAT counts its bytes in 32 bits.
const FILE_LIMIT: u64 = u32::MAX as u64;
/// Links may lead in circles.
const DEPTH_LIMIT: usize = 64;

/// A folder; its entries are in the order of their names in upper case, which is how FAT tells names apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Folder {
    entries: BTreeMap<String, (String, Node)>,
}

#[derive(Clone, Debug)]
enum Node {
    Folder(Folder),
    File(Source),
}

impl Folder {
    /// Adds a file, or a folder where there is no `source`.
    pub(super) fn add(&mut self, path: &str, source: Option<Source>) -> Result<(), SetupDiskError> {
        let wrong = |why| SetupDiskError::Name { path: path.to_owned(), why };
        let parts: Vec<&str> = path.split('/').collect();
        for part in &parts {
            names::check(part).map_err(wrong)?;
        }
        let twice = || SetupDiskError::Twice { path: path.to_owned() };
        let (name, folders) = parts.split_last().ok_or_else(|| wrong("it is empty"))?;
        let mut folder = self;
        for part in folders {
            let (_, node) = folder.entry(part, || Node::Folder(Self::default()));
            let Node::Folder(below) = node else { return Err(twice()) };
            folder = below;
        }
        match source {
            Some(source) => {
                let key = names::folded(name);
                let new = (String::from(*name), Node::File(source));
                if folder.entries.contains_key(&key) {
                    return Err(twice());
                }
                folder.entries.insert(key, new);
            }
            None => {
                let (_, node) = folder.entry(name, || Node::Folder(Self::default()));
                if matches!(node, Node::File(_)) {
                    return Err(twice());
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, new: impl FnOnce() -> Node) -> &mut (String, Node) {
        self.entries.entry(names::folded(name)).or_insert_with(|| (name.to_owned(), new()))
    }

    pub(super) fn add_host_folder(&mut self, path: &str, folder: &Path) -> Result<(), SetupDiskError> {
        self.add_below(path, folder, 0)
    }

    fn add_below(&mut self, path: &str, folder: &Path, depth: usize) -> Result<(), SetupDiskError> {
        let unreadable = |source| SetupDiskError::Read { path: folder.to_owned(), source };
        if depth > DEPTH_LIMIT {
            return Err(unreadable(io::Error::other(
                "folders lie too deep in each other; a link to itself?",
            )));
        }
        if !path.is_empty() {
            self.add(path, None)?;
        }
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let here = entry.path();
            let name = entry.file_name().into_string().map_err(|name| SetupDiskError::Name {
                path: name.to_string_lossy().into_owned(),
                why: "its name is not UTF-8",
            })?;
            let inside = if path.is_empty() { name } else { format!("{path}/{name}") };
            let unreadable = |source| SetupDiskError::Read { path: here.clone(), source };
            let meta = fs::metadata(&here).map_err(unreadable)?;
            if meta.is_dir() {
                self.add_below(&inside, &here, depth + 1)?;
            } else if meta.is_file() {
                self.add(&inside, Some(Source::Path(here)))?;
            } else {
                return Err(unreadable(io::Error::other("neither a file nor a folder")));
            }
        }
        Ok(())
    }
}

/// A folder with its entries in order; `parent` is its own number for the root.
#[derive(Debug)]
pub(super) struct FlatFolder {
    pub(super) parent: usize,
    pub(super) entries: Vec<FlatEntry>,
}

/// One name of a folder.
#[derive(Debug)]
pub(super) struct FlatEntry {
    pub(super) name: String,
    /// 8 and 3 characters, filled with spaces.
    pub(super) short: [u8; 11],
    pub(super) what: Content,
}

/// What is behind a name, by its number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Folder(usize),
    File(usize),
}

/// A file and its size.
#[derive(Debug)]
pub(super) struct FlatFile<'a> {
    pub(super) source: &'a Source,
    pub(super) bytes: u32,
}

/// The whole disk; the root is folder 0.
#[derive(Debug, Default)]
pub(super) struct Flat<'a> {
    pub(super) folders: Vec<FlatFolder>,
    pub(super) files: Vec<FlatFile<'a>>,
}

impl<'a> Flat<'a> {
    /// Lays out the tree; sizes are looked up now.
    pub(super) fn of(root: &'a Folder) -> Result<Self, SetupDiskError> {
        let mut flat = Self::default();
        flat.add(root, 0)?;
        Ok(flat)
    }

    fn add(&mut self, folder: &'a Folder, parent: usize) -> Result<usize, SetupDiskError> {
        let number = self.folders.len();
        self.folders.push(FlatFolder { parent, entries: Vec::new() });
        let mut shorts = ShortNames::default();
        let mut entries = Vec::with_capacity(folder.entries.len());
        for (name, node) in folder.entries.values() {
            let what = match node {
                Node::Folder(below) => Content::Folder(self.add(below, number)?),
                Node::File(source) => {
                    self.files.push(FlatFile { source, bytes: size(source)? });
                    Content::File(self.files.len() - 1)
                }
            };
            entries.push(FlatEntry { short: shorts.take(name), name: name.clone(), what });
        }
        self.folders[number].entries = entries;
        Ok(number)
    }
}

fn size(source: &Source) -> Result<u32, SetupDiskError> {
    let (what, bytes) = match source {
        Source::Bytes(bytes) => ("a generated file".to_owned(), bytes.len() as u64),
        Source::Piece { path, length, .. } => (path.display().to_string(), *length),
        Source::Path(path) => {
            let meta = fs::metadata(path);
            let meta = meta.map_err(|source| SetupDiskError::Read { path: path.clone(), source })?;
            if !meta.is_file() {
                let source = io::Error::other("not a regular file");
                return Err(SetupDiskError::Read { path: path.clone(), source });
            }
            (path.display().to_string(), meta.len())
        }
    };
    if bytes > FILE_LIMIT {
        return Err(SetupDiskError::TooLarge { path: what, bytes });
    }
    Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
}
