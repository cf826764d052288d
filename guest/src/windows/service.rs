//! Being started again by Windows: a service of our own, from the first action until the plan has ended.
//!
//! A service starts at every boot, as LocalSystem, whoever logs on and with whatever rights: entries of `RunOnce`
//! depend on all that, and are gone after the first start.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use windows_sys::Win32::System::Services::SERVICE_AUTO_START;

use super::api::service::{Service, dispatch};

/// Name of the service.
const NAME: &str = "no43-setup";

/// Makes sure that `program setup --service` starts with Windows.
pub(crate) fn register(program: &Path, state: &Path, channels: &[PathBuf]) -> io::Result<()> {
    let quoted = |path: &Path| format!("\"{}\"", path.display()); // paths of Windows hold no quotes
    let channels: String = channels.iter().map(|path| format!(" --channel {}", quoted(path))).collect();
    let line = format!("{} setup --service --state {}{channels}", quoted(program), quoted(state));
    match Service::open(NAME)? {
        Some(service) => service.configure(SERVICE_AUTO_START, Some(&line)),
        None => Service::create(NAME, &line),
    }
}

/// Removes the service; it goes when this process has ended, if it is the service.
pub(crate) fn unregister() -> io::Result<()> {
    Service::open(NAME)?.map_or(Ok(()), |service| service.delete())
}

/// Runs `work` as the service.
pub(crate) fn run_as(work: impl FnOnce() -> Result<u8> + Send + 'static) -> Result<u8> {
    // A failure was told by `work` already; here it only becomes the service's exit code.
    dispatch(Box::new(move || work().map_or(1, u32::from)))
        .context("--service is for the service manager of Windows")?;
    Ok(0)
}
