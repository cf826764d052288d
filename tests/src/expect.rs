//! Small helpers for what a case expects of files and JSON.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;

/// The value at a JSON pointer (`/cards/0/state`), or an error that shows the document.
pub fn at<'a>(document: &'a Value, pointer: &str) -> Result<&'a Value> {
    document.pointer(pointer).with_context(|| format!("nothing at {pointer} in {document:#}"))
}

/// Fails unless the file exists and holds something.
pub fn full_file(path: &Path) -> Result<()> {
    let size = path.metadata().with_context(|| format!("{} is not there", path.display()))?.len();
    ensure!(size > 0, "{} is empty", path.display());
    Ok(())
}

/// Every file below a folder with its size, sorted: what was published, compared before and after.
pub fn listing(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        let entries = match std::fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => bail!("failed to list {}: {e}", next.display()),
        };
        for entry in entries {
            let (entry, path) = (entry.as_ref(), entry.as_ref().map(std::fs::DirEntry::path));
            let (Ok(entry), Ok(path)) = (entry, path) else { continue };
            if entry.file_type()?.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
                found.push((name, entry.metadata()?.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}
