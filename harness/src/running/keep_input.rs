//! The host's last keyboard and pointer stay: what a recipe would take from it is shared instead, or refused.

use std::fs;
use std::path::{Path, PathBuf};

use no43_builder::plan::{Plan, UsbPlan};
use no43_host::input::{Input, Passed, inputs, last_ones};
use no43_host::{PciAddress, Roots};

use super::host::Refusal;
use crate::exit_codes;

/// Both Ctrl keys at once: QEMU's default, and on every keyboard.
const TOGGLE: &str = "ctrl-ctrl";

/// Changes the plan so that this host keeps a keyboard and a pointer, and says in words what it did.
///
/// What would be the last of its kind is shared by evdev, with keys that switch it over. With `yes` it is passed all the
/// same. `functions` are the PCI functions that the guest gets: a USB controller takes along what is plugged into it.
///
/// # Errors
/// It would be the last one and cannot be shared.
pub(super) fn keep_input(
    plan: &mut Plan,
    functions: &[PciAddress],
    yes: bool,
    roots: &Roots,
) -> Result<Vec<String>, Refusal> {
    let inputs = inputs(roots);
    let usb = &mut plan.devices.usb;
    let mut all: Vec<Passed> = usb.iter().filter_map(passed).collect();
    all.extend(functions.iter().copied().map(Passed::Pci));
    let lost = last_ones(&inputs, &all);
    let mut said = Vec::new();
    if yes {
        said.extend(lost.iter().map(|input| {
            format!(
                "the last {} of this host ({}) goes to the guest: it comes back when the guest ends, or when it is unplugged and plugged in again; from another computer: ssh, then no43 stop {}",
                input.kind.word(),
                input.name,
                plan.name
            )
        }));
        return Ok(said);
    }
    let by_usb = |input: &Input| usb.iter().any(|one| takes(one, input));
    if let Some(input) = lost.iter().find(|input| !by_usb(input)) {
        return Err(refuse(input, "is on a USB controller that the guest gets: plug it in elsewhere"));
    }
    // a receiver of keyboard and mouse is shared as a whole
    let (shared, given): (Vec<UsbPlan>, Vec<UsbPlan>) =
        usb.drain(..).partition(|one| lost.iter().any(|input| takes(one, input)));
    *usb = given;
    for input in inputs.iter().filter(|input| shared.iter().any(|one| takes(one, input))) {
        if fs::File::open(&input.node).is_err() {
            let why = format!(
                "cannot be shared, because this user cannot open {}: sudo usermod -a -G input $USER, then log in again",
                input.node.display()
            );
            return Err(refuse(input, &why));
        }
        said.push(format!(
            "the {} of this host ({}) is shared with the guest and not given to it, since it is the last one here: both Ctrl keys together switch it over, and back; --yes gives it away",
            input.kind.word(),
            input.name
        ));
        usb.push(UsbPlan::Evdev { path: by_id(&input.node, roots), toggle: TOGGLE.into() });
    }
    Ok(said)
}

fn takes(usb: &UsbPlan, input: &Input) -> bool {
    passed(usb).is_some_and(|passed| passed.takes(input))
}

fn refuse(input: &Input, why: &str) -> Refusal {
    Refusal::new(
        exit_codes::NOT_LENT,
        format!(
            "the last {} of this host ({}) {why}; or --yes if you have another way in",
            input.kind.word(),
            input.name
        ),
    )
}

fn passed(usb: &UsbPlan) -> Option<Passed> {
    match usb {
        UsbPlan::Port { bus, port } => Some(Passed::UsbPort(format!("{bus}-{port}"))),
        UsbPlan::Id(id) => Some(Passed::UsbId(id.clone())),
        UsbPlan::Evdev { .. } => None,
    }
}

/// The name that stays when it is plugged in elsewhere, where there is one.
fn by_id(node: &Path, roots: &Roots) -> PathBuf {
    let entries = fs::read_dir(roots.dev.join("input/by-id")).into_iter().flatten().flatten();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    names.sort();
    let same = |name: &PathBuf| name.canonicalize().ok() == node.canonicalize().ok();
    names.into_iter().find(same).unwrap_or_else(|| node.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const KEYS: &str = "fffffffffffffffe";
    const BUTTONS: &str = "70000 0 0 0 0";

    /// A host with one receiver on USB port 1-4, for keyboard and mouse.
    fn desk() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        for (event, keys, rel) in [("event0", KEYS, "0"), ("event1", BUTTONS, "903")] {
            let device = roots.sys.join("devices/pci0000:00/0000:00:14.0/usb1/1-4/input").join(event);
            fs::create_dir_all(device.join("device/capabilities")).unwrap();
            fs::write(device.join("device/name"), "Receiver").unwrap();
            fs::write(device.join("device/capabilities/key"), keys).unwrap();
            fs::write(device.join("device/capabilities/rel"), rel).unwrap();
            fs::create_dir_all(roots.sys.join("class/input")).unwrap();
            symlink(&device, roots.sys.join("class/input").join(event)).unwrap();
            fs::create_dir_all(roots.dev.join("input/by-id")).unwrap();
            fs::write(roots.dev.join("input").join(event), "").unwrap();
        }
        symlink("../event0", roots.dev.join("input/by-id/usb-Receiver-event-kbd")).unwrap();
        (dir, roots)
    }

    fn wish() -> Plan {
        let mut plan = crate::verify::plan_for_tests(Vec::new());
        plan.devices.usb = vec![UsbPlan::Port { bus: 1, port: "4".into() }, UsbPlan::Id("1:2".into())];
        plan
    }

    #[test]
    fn one_keyboard_is_shared_and_the_way_back_is_said() {
        let (_dir, roots) = desk();
        let mut plan = wish();
        let said = keep_input(&mut plan, &[], false, &roots).unwrap();
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("keyboard") && said[0].contains("both Ctrl keys together"), "{said:?}");
        let evdev =
            |name: &str| UsbPlan::Evdev { path: roots.dev.join("input").join(name), toggle: TOGGLE.into() };
        assert_eq!(
            plan.devices.usb,
            [UsbPlan::Id("1:2".into()), evdev("by-id/usb-Receiver-event-kbd"), evdev("event1")]
        );
    }

    #[test]
    fn it_is_given_away_only_when_somebody_says_yes() {
        let (_dir, roots) = desk();
        let mut plan = wish();
        let said = keep_input(&mut plan, &[], true, &roots).unwrap();
        assert!(said[0].contains("no43 stop lab-guest"), "{said:?}");
        assert_eq!(plan, wish());
    }

    #[test]
    fn a_controller_with_the_last_keyboard_is_refused() {
        let (_dir, roots) = desk();
        let mut plan = crate::verify::plan_for_tests(Vec::new());
        let refusal = keep_input(&mut plan, &["00:14.0".parse().unwrap()], false, &roots).unwrap_err();
        assert_eq!(refusal.code, exit_codes::NOT_LENT);
        assert!(refusal.cause.contains("plug it in elsewhere"), "{}", refusal.cause);
    }

    #[test]
    fn what_is_not_the_last_one_is_left_to_the_recipe() {
        let (_dir, roots) = desk();
        let mut plan = wish();
        plan.devices.usb.remove(0);
        assert!(keep_input(&mut plan, &[], false, &roots).unwrap().is_empty());
    }
}
