//! Whether a function still answers, and what is left to do with a card that does not.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::raw::{in_child, tell};
use crate::roots::read_line;
use crate::{PciAddress, Roots};

/// What a person can do about a card in quarantine.
pub(crate) fn way_out(address: &PciAddress) -> String {
    format!(
        "reboot the host (a card that hangs may need a cold start); when it is well again without one: sudo no43 release --end-quarantine {}",
        address.short()
    )
}

/// Why a function cannot be used, in words; `None` when it answers. It may wake the device up, and takes at most `limit`.
pub(crate) fn ailment(address: &PciAddress, roots: &Roots, limit: Duration) -> Option<String> {
    let (device, name) = (roots.device(address), address.short());
    if !device.exists() {
        return Some(format!("{name} left the bus while it was lent: reseat it or reboot the host"));
    }
    match first_bytes(&device.join("config"), limit) {
        Answer::Bytes([0xff, 0xff, 0xff, 0xff]) => {
            return Some(format!(
                "{name} answers nothing (its configuration space is all ones): it needs a cold start of the host"
            ));
        }
        Answer::Hangs => {
            return Some(format!(
                "{name} did not answer within {} s (reading its configuration space hangs)",
                limit.as_secs()
            ));
        }
        Answer::Bytes(_) | Answer::Unreadable => {}
    }
    power(&device).map(|what| format!("{name} {what}: it needs a cold start of the host"))
}

/// A device that sleeps is fine; one that should be awake and is not has lost its power.
fn power(device: &Path) -> Option<String> {
    let line = |name: &str| read_line(&device.join(name)).unwrap_or_default();
    let (state, status) = (line("power_state"), line("power/runtime_status"));
    match (state.as_str(), status.as_str()) {
        (_, "error") => Some("cannot change its power state (power/runtime_status says error)".into()),
        ("error", _) => Some("is in no known power state (power_state says error)".into()),
        ("D3cold", "active") => Some("is stuck in D3cold although it should be awake".into()),
        _ => None,
    }
}

enum Answer {
    Bytes([u8; 4]),
    /// There is no such file, or it may not be read: nothing is known.
    Unreadable,
    Hangs,
}

fn first_bytes(config: &Path, limit: Duration) -> Answer {
    let end = in_child(limit, |pipe| {
        let mut first = [0u8; 4];
        if File::open(config).and_then(|mut file| file.read_exact(&mut first)).is_ok() {
            tell(pipe, &format!("{:08x}", u32::from_be_bytes(first)));
        }
    });
    match end {
        Ok(end) if end.hangs.is_some() => Answer::Hangs,
        Ok(end) => match u32::from_str_radix(&String::from_utf8_lossy(&end.said), 16) {
            Ok(number) => Answer::Bytes(number.to_be_bytes()),
            Err(_) => Answer::Unreadable,
        },
        Err(_) => Answer::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn seen(files: &[(&str, &str)]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        let address = "01:00.0".parse().unwrap();
        let device = roots.device(&address);
        fs::create_dir_all(device.join("power")).unwrap();
        fs::write(device.join("config"), [0xde, 0x10, 0x84, 0x24]).unwrap();
        files.iter().for_each(|(name, text)| fs::write(device.join(name), text).unwrap());
        ailment(&address, &roots, Duration::from_secs(10))
    }

    #[test]
    fn a_sleeping_card_is_well_and_a_stuck_one_is_not() {
        let power = |state, status| seen(&[("power_state", state), ("power/runtime_status", status)]);
        assert_eq!(power("D0\n", "active\n"), None);
        assert_eq!(power("D3hot\n", "suspended\n"), None);
        assert_eq!(power("D3cold\n", "suspended\n"), None);
        assert!(power("D3cold\n", "active\n").unwrap().contains("stuck in D3cold"));
        assert!(power("unknown\n", "error\n").unwrap().contains("runtime_status"));
        assert!(power("error\n", "active\n").unwrap().contains("no known power state"));
    }

    #[test]
    fn a_configuration_space_that_hangs_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        let address = "01:00.0".parse().unwrap();
        fs::create_dir_all(roots.device(&address)).unwrap();
        // a pipe that nobody writes to: reading it waits for ever
        let config = roots.device(&address).join("config");
        assert!(std::process::Command::new("mkfifo").arg(&config).status().unwrap().success());
        let said = ailment(&address, &roots, Duration::from_millis(100)).unwrap();
        assert!(said.contains("hangs"), "{said}");
    }
}
