//! Keeping a card's driver as it is: Windows' policy against other drivers for certain hardware ids, as set-up plans.
//!
//! The list is in no image: Windows would refuse a staged driver, and a card of the recipe's that the image has not met. Each run
//! sets it once the driver has bound, and lifts it before that; a layer that changes the driver lifts it first.

use no43_guest::setup::{Action, RegistryValue, SetupPlan, Task};
use no43_host::PciId;

/// Where the policy lies. Values as intel/kvm-multios sets them (guest_setup/ubuntu/win11_setup.sh); Microsoft, "Prevent installation
/// of devices that match any of these device IDs". Not tried on a real Windows.
const RESTRICTIONS: &str = r"HKLM\SOFTWARE\Policies\Microsoft\Windows\DeviceInstall\Restrictions";
const LIST: &str = r"HKLM\SOFTWARE\Policies\Microsoft\Windows\DeviceInstall\Restrictions\DenyDeviceIDs";
const ON: &str = "DenyDeviceIDs";
/// 1 would make Windows remove a matching device that works already.
const RETROACTIVE: &str = "DenyDeviceIDsRetroactive";
/// Entries that are ours at most: a recipe leases no more cards than this.
const MOST_IDS: usize = 64;

/// The id by which Windows' policy knows a card, whatever its board.
#[must_use]
pub fn hardware_id(id: PciId) -> String {
    format!(r"PCI\VEN_{:04X}&DEV_{:04X}", id.vendor, id.device)
}

/// No other driver is installed for these cards.
#[must_use]
pub fn lock(cards: &[PciId]) -> SetupPlan {
    let mut values = vec![(RESTRICTIONS, RETROACTIVE.to_owned(), RegistryValue::Dword(0))];
    let ids = (1..).zip(cards.iter().take(MOST_IDS));
    values.extend(ids.map(|(n, id)| (LIST, format!("{n}"), RegistryValue::String(hardware_id(*id)))));
    // What an earlier list had more.
    let rest = cards.len().min(MOST_IDS) + 1..=MOST_IDS;
    values.extend(rest.map(|n| (LIST, format!("{n}"), RegistryValue::Delete)));
    // Last, so that no moment has a policy with half a list.
    values.push((RESTRICTIONS, ON.to_owned(), RegistryValue::Dword(1)));
    plan("driver/lock", values)
}

/// Any driver is installed again, as the one action that a plan begins with before it changes a driver.
#[must_use]
pub fn lift() -> Action {
    let task =
        Task::Registry { key: RESTRICTIONS.to_owned(), name: ON.to_owned(), value: RegistryValue::Delete };
    Action { limit_seconds: 60, ..Action::new("lets the driver change", task) }
}

/// The list is lifted, and Windows tries again what it had refused: a card may have come that it had not met before.
#[must_use]
pub fn retry() -> SetupPlan {
    let mut plan = unlock();
    "driver/retry".clone_into(&mut plan.id);
    plan.actions
        .push(Action { limit_seconds: 120, ..Action::new("looks for devices again", Task::ScanDevices) });
    plan
}

/// Any driver is installed again.
#[must_use]
pub fn unlock() -> SetupPlan {
    let mut values = vec![(RESTRICTIONS, ON.to_owned(), RegistryValue::Dword(0))];
    values.extend((1..=MOST_IDS).map(|n| (LIST, format!("{n}"), RegistryValue::Delete)));
    plan("driver/unlock", values)
}

fn plan(id: &str, values: Vec<(&str, String, RegistryValue)>) -> SetupPlan {
    let action = |(key, name, value): (&str, String, RegistryValue)| {
        let what = format!("{} {name}", key.rsplit('\\').next().unwrap_or(key));
        Action { limit_seconds: 60, ..Action::new(what, Task::Registry { key: key.to_owned(), name, value }) }
    };
    SetupPlan { seal: false, ..SetupPlan::new(id, values.into_iter().map(action).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_set_whole_and_lifted_whole() {
        let ids: Vec<PciId> = ["10de:2484", "10de:2504"].map(|id| id.parse().unwrap()).to_vec();
        let (lock, unlock) = (lock(&ids), unlock());
        lock.check().unwrap();
        unlock.check().unwrap();
        let text = lock.to_json();
        assert!(text.contains(r"PCI\\VEN_10DE&DEV_2484") && text.contains("DEV_2504"), "{text}");
        assert_eq!(lock.actions.len(), 1 + MOST_IDS + 1);
        let switch = |plan: &SetupPlan, last: bool| {
            let at = if last { plan.actions.last() } else { plan.actions.first() };
            at.map(|action| action.name.clone())
        };
        assert_eq!(switch(&lock, true).as_deref(), Some("Restrictions DenyDeviceIDs"));
        assert_eq!(switch(&unlock, false).as_deref(), Some("Restrictions DenyDeviceIDs"));
    }
}
