//! Kept disks inside a Linux guest: found by serial number, formatted only if blank, mounted by name.

use std::time::Duration;

use no43_machine::agent::{Agent, ExecLimits};

use crate::words;

/// Making a file system on a large, empty disk writes little; a guest without KVM needs seconds for it.
const LIMIT: Duration = Duration::from_secs(120);

/// Blank means: nothing but zeros in the first MiB, where every file system and partition table begins, and in the last one,
/// where copies of them are kept. Anything else is somebody's data and only mounted.
const SCRIPT: &str = r#"
for disk in /sys/block/*; do
    [ "$(cat "$disk/serial" 2>/dev/null)" = "$1" ] || continue
    dev=/dev/${disk##*/}; at=/mnt/$2
    grep -q "^$dev" /proc/mounts && exit 0
    last=$(( $(cat "$disk/size") / 2048 - 1 ))
    written=$( { dd if="$dev" bs=1M count=1; dd if="$dev" bs=1M count=1 skip="$last"; } 2>/dev/null | tr -d '\0' | wc -c)
    if [ "$written" = 0 ] && [ -z "$(ls "$disk" | grep "^${disk##*/}")" ]; then
        mkfs.ext4 -q -L "$(printf %.16s "$2")" "$dev" || exit 1
    fi
    mkdir -p "$at" && exec mount "$dev" "$at"
done
echo "no disk with the serial number $1 is here" >&2; exit 1
"#;

/// Prepares one disk. `Err` says why it cannot be used; its contents are not touched then.
pub(super) fn prepare(agent: &Agent, serial: &str, name: &str) -> Result<(), String> {
    let output =
        agent.exec(&["/bin/sh", "-c", SCRIPT, "no43-disk", serial, name], &ExecLimits::within(LIMIT));
    let output = output.map_err(|error| error.to_string())?;
    if output.success() {
        return Ok(());
    }
    Err(words::clean_to(&output.stderr_text(), 300))
}
