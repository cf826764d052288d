//! Fetching by apt's own downloader, which knows this host's proxies; no HTTP client of our own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Why nothing was fetched; a sentence for a person.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchError {
    /// The other side answered that there is no such thing.
    NotThere(String),
    /// Everything else.
    Failed(String),
}

impl FetchError {
    pub(super) fn sentence(self) -> String {
        match self {
            Self::NotThere(sentence) | Self::Failed(sentence) => sentence,
        }
    }
}

/// Fetches `url` into `to`.
pub(super) fn fetch(url: &str, to: &Path) -> Result<(), FetchError> {
    if let Some(path) = url.strip_prefix("file:") {
        // file:/a, file:///a and file://localhost/a are the same file.
        let path = path.strip_prefix("//localhost").or_else(|| path.strip_prefix("//")).unwrap_or(path);
        return fs::copy(path, to).map(drop).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => FetchError::NotThere(format!("there is no file {path}")),
            _ => FetchError::Failed(format!("failed to read {path}: {error}")),
        });
    }
    let output = Command::new(APT_HELPER)
        .args([
            "-o",
            "Acquire::Retries=2",
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
        ])
        .args(["download-file", url])
        .arg(to)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| {
            FetchError::Failed(format!("failed to start {APT_HELPER} (package apt), which fetches: {error}"))
        })?;
    if output.status.success() && to.is_file() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason =
        said.lines().find(|line| line.starts_with("E:") || line.starts_with("Err:")).unwrap_or(said.trim());
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(300).collect();
    let reason = reason.trim_start_matches("E: ").trim_start_matches("Failed to fetch ").replace(url, "");
    let sentence = format!("failed to fetch {url}: {}", reason.trim());
    Err(if said.contains(" 404 ") { FetchError::NotThere(sentence) } else { FetchError::Failed(sentence) })
}
