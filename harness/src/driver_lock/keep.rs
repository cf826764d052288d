//! A start of a guest whose recipe says `updates.driver = "ours"`: the list against other drivers is set once the driver has bound, and
//! lifted where it keeps a card of the recipe's from its driver.
//!
//! The list names every card that the recipe may lease. One that this guest meets for the first time is refused its driver by
//! Windows, however long the driver has been staged: then the list is lifted, Windows tries again, and the list is set once more.

use std::time::{Duration, Instant};

use no43_builder::driver::updates;
use no43_builder::plan::{LayerWhat, Plan};
use no43_guest::protocol::Report;
use no43_guest::setup::SetupPlan;
use no43_host::PciId;
use no43_machine::agent::Agent;

use super::{CardDriver, Done, cards, carry_out, ids, report, without};

/// From the guest agent's first answer until a staged driver has bound: Windows installs it behind the first logon, minutes on
/// a busy machine without KVM.
pub const BIND_LIMIT: Duration = Duration::from_secs(300);
/// Between two looks: a report takes the guest a second of work.
const PAUSE: Duration = Duration::from_secs(5);

/// Sets the list for `plan`'s guest; `None`: the plan asks for none.
///
/// # Errors
/// A sentence why the list is not set. The guest goes on without it.
pub fn keep(agent: &Agent, plan: &Plan, stop: &dyn Fn() -> bool) -> Option<Result<Done, String>> {
    if !plan.driver.keep || plan.cards.is_empty() {
        return None;
    }
    let brings = |what: &LayerWhat| matches!(what, LayerWhat::WindowsSetup(setup) if setup.driver.is_some());
    let waits = plan.layers.iter().any(|layer| brings(&layer.what));
    let limit = if waits { BIND_LIMIT } else { Duration::ZERO };
    Some(keep_in(&mut Live(agent), &plan.driver.cards, limit, stop))
}

/// The guest, as far as this needs it.
trait Guest {
    fn report(&mut self) -> Result<Report, String>;
    fn carry_out(&mut self, plan: &SetupPlan) -> Result<(), String>;
    fn pause(&mut self) -> Duration;
}

struct Live<'a>(&'a Agent);

impl Guest for Live<'_> {
    fn report(&mut self) -> Result<Report, String> {
        report(self.0)
    }

    fn carry_out(&mut self, plan: &SetupPlan) -> Result<(), String> {
        carry_out(self.0, plan, "driver-lock")
    }

    fn pause(&mut self) -> Duration {
        let began = Instant::now();
        std::thread::sleep(PAUSE);
        began.elapsed()
    }
}

fn keep_in(
    guest: &mut dyn Guest,
    also: &[String],
    limit: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<Done, String> {
    let (mut waited, mut lifted) = (Duration::ZERO, false);
    loop {
        let report = guest.report()?;
        let cards = cards(&report);
        let denied = report.windows.and_then(|windows| windows.install_denied).unwrap_or_default();
        let ids = ids(&cards, also);
        match without(&cards) {
            None if cards.is_empty() => {
                return Err("the guest sees no card whose driver could be kept".into());
            }
            None => {
                if !is_list(&denied, &ids) {
                    guest.carry_out(&updates::lock(&ids))?;
                }
                return Ok(Done { kept: ids.iter().map(ToString::to_string).collect(), cards });
            }
            Some(_) if refused(&cards, &denied) && !lifted => {
                guest.carry_out(&updates::retry())?;
                lifted = true;
            }
            Some(why) if waited >= limit || final_(&cards) => return Err(why),
            Some(_) if stop() => return Err("stopped while the driver was waited for".into()),
            Some(_) => {}
        }
        waited += guest.pause();
    }
}

/// The list in the guest is the one that is wanted.
fn is_list(denied: &[String], ids: &[PciId]) -> bool {
    let wanted = ids.iter().map(|id| updates::hardware_id(*id));
    denied.len() == ids.len() && wanted.zip(denied).all(|(wanted, is)| wanted.eq_ignore_ascii_case(is))
}

/// A card has no driver, and the list names it.
fn refused(cards: &[CardDriver], denied: &[String]) -> bool {
    let named = |card: &CardDriver| {
        let id = card.id.parse::<PciId>().ok().map(updates::hardware_id);
        id.is_some_and(|id| denied.iter().any(|denied| denied.eq_ignore_ascii_case(&id)))
    };
    cards.iter().filter(|card| card.version.is_none()).any(named)
}

/// Every card has its driver, and Windows' complaint about one is what that driver says: no waiting changes it.
fn final_(cards: &[CardDriver]) -> bool {
    cards.iter().all(|card| card.version.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::protocol::{DevNode, GuestFunction, WindowsFacts};
    use no43_guest::setup::{RegistryValue, Task};

    const POOL: [&str; 2] = ["10de:2484", "10de:2504"];

    /// A Windows that binds a staged driver at the look of that number, unless the list forbids it.
    struct Windows {
        card: &'static str,
        binds_at: u32,
        looks: u32,
        bound: bool,
        problem: u32,
        on: bool,
        list: Vec<(u32, String)>,
        told: Vec<String>,
        most: usize,
    }

    impl Windows {
        fn new(card: &'static str, binds_at: u32) -> Self {
            let (told, list) = (Vec::new(), Vec::new());
            Self { card, binds_at, looks: 0, bound: false, problem: 0, on: false, list, told, most: 0 }
        }

        fn denied(&self) -> Vec<String> {
            let ids = self.list.iter().map(|(_, id)| id.clone());
            if self.on { ids.collect() } else { Vec::new() }
        }

        fn forbids(&self) -> bool {
            let id = updates::hardware_id(self.card.parse().unwrap());
            self.denied().contains(&id)
        }

        /// As a run does, with this host's patience.
        fn start(&mut self) -> Result<Done, String> {
            self.looks = 0;
            keep_in(self, &POOL.map(str::to_owned), BIND_LIMIT, &|| false)
        }
    }

    impl Guest for Windows {
        fn report(&mut self) -> Result<Report, String> {
            self.looks += 1;
            self.bound |= self.looks >= self.binds_at && !self.forbids();
            let card = GuestFunction {
                id: Some(self.card.into()),
                class: Some("030000".into()),
                driver: Some(if self.bound { "nvlddmkm" } else { "BasicDisplay" }.into()),
                driver_version: Some(if self.bound { "27.21.14.6611" } else { "10.0.19041.1" }.into()),
                node: Some(DevNode { problem: Some(self.problem), ..DevNode::default() }),
                ..GuestFunction::default()
            };
            let windows = WindowsFacts { install_denied: Some(self.denied()), ..WindowsFacts::default() };
            Ok(Report { functions: vec![card], windows: Some(windows), ..Report::default() })
        }

        fn carry_out(&mut self, plan: &SetupPlan) -> Result<(), String> {
            self.told.push(plan.id.clone());
            for action in &plan.actions {
                match &action.task {
                    Task::Registry { name, value: RegistryValue::Dword(on), .. }
                        if name == "DenyDeviceIDs" =>
                    {
                        self.on = *on == 1;
                        assert!(!self.on || self.bound, "the list is set before the driver has bound");
                    }
                    Task::Registry { name, value, .. } => {
                        let Ok(n) = name.parse() else { continue };
                        self.list.retain(|(number, _)| *number != n);
                        if let RegistryValue::String(id) = value {
                            self.list.push((n, id.clone()));
                        }
                    }
                    _ => {}
                }
            }
            self.list.sort();
            self.most = self.most.max(self.list.len());
            Ok(())
        }

        fn pause(&mut self) -> Duration {
            PAUSE
        }
    }

    #[test]
    fn a_staged_driver_binds_before_the_list_is_set_and_a_second_start_changes_nothing() {
        let mut windows = Windows::new("10de:2484", 4);
        let done = windows.start().unwrap();
        assert_eq!(
            (done.kept, windows.told.clone()),
            (POOL.map(str::to_owned).to_vec(), vec!["driver/lock".into()])
        );
        assert_eq!(windows.looks, 4);
        assert!(windows.on && windows.most == 2);
        windows.start().unwrap();
        assert_eq!((windows.looks, windows.told.len()), (1, 1));
    }

    #[test]
    fn a_card_that_this_guest_has_not_met_gets_its_driver_all_the_same() {
        let mut windows = Windows::new("10de:2484", 1);
        windows.start().unwrap();
        // the next run leases the other card of the recipe
        (windows.card, windows.bound) = ("10de:2504", false);
        windows.start().unwrap();
        assert_eq!(windows.told, ["driver/lock", "driver/retry", "driver/lock"]);
        assert!(windows.bound && windows.on);
    }

    #[test]
    fn a_card_without_a_driver_or_with_a_problem_code_leaves_the_list_off() {
        let mut never = Windows::new("10de:2484", u32::MAX);
        assert_eq!(never.start().unwrap_err(), "10de:2484 has no driver yet");
        assert_eq!((never.looks, never.on), (61, false));
        let mut broken = Windows { problem: 43, ..Windows::new("10de:2484", 1) };
        assert_eq!(broken.start().unwrap_err(), "10de:2484 has problem code 43");
        assert_eq!((broken.looks, broken.on), (1, false));
        let mut other = Windows::new("1002:73bf", 1);
        assert_eq!(other.start().unwrap_err(), "the guest sees no card whose driver could be kept");
    }

    #[test]
    fn a_request_to_stop_ends_the_wait() {
        let mut windows = Windows::new("10de:2484", u32::MAX);
        let ids = POOL.map(str::to_owned);
        let why = keep_in(&mut windows, &ids, BIND_LIMIT, &|| true).unwrap_err();
        assert_eq!((why.as_str(), windows.looks), ("stopped while the driver was waited for", 1));
    }
}
