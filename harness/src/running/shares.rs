//! Shares inside a Linux guest, mounted where the recipe wants them.

use std::time::Duration;

use no43_builder::plan::SharePlan;
use no43_machine::agent::{Agent, ExecLimits};

use crate::words;

const LIMIT: Duration = Duration::from_secs(60);

/// virtiofs where the guest finds the tag there, else 9p: which of the two it is was decided on the host.
const SCRIPT: &str = r#"
mkdir -p "$2" || exit 1
grep -q " $2 " /proc/mounts && exit 0
modprobe -q virtiofs; modprobe -q 9p; modprobe -q 9pnet_virtio
mount -t virtiofs "$1" "$2" 2>/dev/null && exit 0
exec mount -t 9p -o trans=virtio,version=9p2000.L "$1" "$2"
"#;

/// Mounts one; `Err` says why it is not mounted.
pub(super) fn mount(agent: &Agent, share: &SharePlan) -> Result<(), String> {
    let Some(to) = &share.to else { return Ok(()) };
    let command = ["/bin/sh", "-c", SCRIPT, "no43-share", &share.name, to];
    let output = agent.exec(&command, &ExecLimits::within(LIMIT)).map_err(|error| error.to_string())?;
    if output.success() { Ok(()) } else { Err(words::clean_to(&output.stderr_text(), 300)) }
}
