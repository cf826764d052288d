//! The power button: how a host asks a guest without an agent to switch itself off.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use crate::linux::power::Ending;
use crate::linux::{Root, names, read_text};

/// The kernel's name of the ACPI power button.
const NAME: &str = "Power Button";

/// Size of `struct input_event` on 64-bit systems: 16 bytes of time, then type, code and value.
const EVENT: usize = 24;

const KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Watches all power buttons in threads of their own; a press is sent like the signal for "power off".
pub(super) fn watch(root: &Root, sender: &Sender<i32>) {
    for node in power_buttons(root) {
        let sender = sender.clone();
        let Ok(file) = File::open(node) else { continue };
        let wait = move || {
            if wait_for_press(file) {
                let _ = sender.send(Ending::PowerOff.signal().as_raw());
            }
        };
        let _ = std::thread::Builder::new().spawn(wait); // without it the agent can still end the guest
    }
}

fn power_buttons(root: &Root) -> Vec<PathBuf> {
    let class = root.path("sys/class/input");
    let events = names(&class).unwrap_or_default().into_iter().filter(|name| name.starts_with("event"));
    events
        .filter(|event| read_text(&class.join(event).join("device/name")).is_ok_and(|name| name == NAME))
        .map(|event| root.path("dev/input").join(event))
        .collect()
}

/// `true` when the button was pressed, `false` when it is gone.
fn wait_for_press(mut events: impl Read) -> bool {
    let mut event = [0_u8; EVENT];
    while events.read_exact(&mut event).is_ok() {
        if is_press(&event) {
            return true;
        }
    }
    false
}

fn is_press(event: &[u8; EVENT]) -> bool {
    let [kind_low, kind_high, code_low, code_high, value @ ..] = &event[16..] else { return false };
    u16::from_ne_bytes([*kind_low, *kind_high]) == KEY
        && u16::from_ne_bytes([*code_low, *code_high]) == KEY_POWER
        && value.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    fn event(kind: u16, code: u16, value: u32) -> Vec<u8> {
        let parts: [&[u8]; 4] = [&[0x5a; 16], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()];
        parts.concat()
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let others = [event(0, 0, 0), event(KEY, KEY_POWER, 0), event(KEY, 30, 1)].concat();
        assert!(!wait_for_press(others.as_slice()));
        assert!(wait_for_press([others, event(KEY, KEY_POWER, 1)].concat().as_slice()));
    }

    #[test]
    fn the_button_is_found_by_its_name() {
        let guest = FakeGuest::new();
        guest.write("sys/class/input/event0/device/name", "AT Translated Set 2 keyboard\n");
        guest.write("sys/class/input/event1/device/name", "Power Button\n");
        guest.write("sys/class/input/input1/name", "Power Button\n");
        assert_eq!(power_buttons(&guest.root()), [guest.root().path("dev/input/event1")]);
    }
}
