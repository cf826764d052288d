//! The executor with an actor that only writes down what it was asked for, and can die at any moment.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use no43_guest::setup::Codes;
use no43_guest::setup::event::Event;
use proptest::prelude::*;

use super::*;

/// What the guest dies of in these tests.
struct PowerCut;

#[derive(Default)]
struct Fake {
    performed: Vec<String>,
    registered: bool,
    /// Calls until the power is cut.
    dies_after: Option<usize>,
    sealed: u32,
}

impl Fake {
    fn moment(&mut self) {
        if let Some(left) = &mut self.dies_after {
            if *left == 0 {
                self.dies_after = None;
                resume_unwind(Box::new(PowerCut)); // without the panic's message
            }
            *left -= 1;
        }
    }
}

impl Actor for Fake {
    fn perform(&mut self, action: &Action, _: &Place) -> Result<Done, Failure> {
        assert!(self.registered, "a restart in '{}' would end the set-up", action.name);
        self.moment();
        self.performed.push(action.name.clone());
        self.moment();
        match action.name.as_str() {
            "restarts" => Ok(Done { outcome: Outcome::RestartNeeded, code: Some(3010), note: None }),
            "refused" => Err(Failure::new(Cause::Refused, "not here")),
            "fails" => Err(Failure { code: Some(1603), ..Failure::new(Cause::ExitCode, "ended with 1603") }),
            "kills" => resume_unwind(Box::new(PowerCut)),
            _ => Ok(Done::now(Outcome::Done)),
        }
    }

    fn stay(&mut self, _: &Place) -> Result<(), Failure> {
        self.moment();
        self.registered = true;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Failure> {
        self.moment();
        self.registered = false;
        Ok(())
    }

    fn seal(&mut self) -> Result<Option<String>, Failure> {
        self.moment();
        self.sealed += 1;
        Ok(Some("IMAGE_STATE_COMPLETE".into()))
    }
}

struct Guest {
    dir: tempfile::TempDir,
    fake: Fake,
    told: Vec<String>,
    stand_in: bool,
}

impl Guest {
    fn new(names: &[&str]) -> Self {
        let action = |name: &&str| match *name {
            "restart" => Action::new(*name, Task::Restart { only_if_needed: false }),
            "restart if needed" => Action::new(*name, Task::Restart { only_if_needed: true }),
            _ => Action::new(*name, Task::Command { run: vec!["x".into()], codes: Codes::default() }),
        };
        let mut plan = SetupPlan::new("test", names.iter().map(action).collect());
        plan.secrets = vec!["secret".into()];
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        fs::write(dir.path().join("disk/secret"), "hunter2").unwrap();
        fs::write(dir.path().join("disk/plan.json"), plan.to_json()).unwrap();
        Self { dir, fake: Fake::default(), told: vec![], stand_in: false }
    }

    /// One start of the program; `None` if it died.
    fn start(&mut self, with_plan: bool) -> Option<Ending> {
        let request = Request {
            plan: with_plan.then(|| self.dir.path().join("disk/plan.json")),
            state: self.dir.path().join("state"),
            drive_c: None,
            stand_in: self.stand_in,
        };
        let told = &mut self.told;
        let mut tell = |run, what| {
            // through the line, as the host reads it
            let line = Event { run, seq: 1, at_ms: 0, what }.line();
            told.push(format!("{run} {}", brief(&Event::find(line.as_bytes()).unwrap().unwrap().what)));
        };
        let run = AssertUnwindSafe(|| run(&request, &mut self.fake, &mut tell));
        catch_unwind(run).map_err(|cause| assert!(cause.is::<PowerCut>(), "a panic of its own")).ok()
    }

    /// Starts again and again, as the service of a guest does, until nothing wants to go on.
    fn live(&mut self) -> Option<Ending> {
        let mut ending = self.start(true);
        for _ in 0..40 {
            let goes_on = matches!(ending, None | Some(Ending::Restart)) && self.fake.registered;
            if !goes_on {
                break;
            }
            ending = self.start(false);
        }
        ending
    }
}

fn brief(what: &What) -> String {
    match what {
        What::Started { from, actions, .. } => format!("started at {from} of {actions}"),
        What::Begun { name, .. } => format!("begun {name}"),
        What::Ended { name, outcome, note, .. } => {
            format!(
                "ended {name}: {outcome:?}{}",
                note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default()
            )
        }
        What::Restarting { action, reason } => format!("restarting for '{reason}', then {action}"),
        What::Failed { action, name, cause, code, text, .. } => {
            format!("failed {action:?} {name} {cause:?} {code:?}: {text}")
        }
        What::Finished { restarts, refused, image_state, .. } => {
            format!("finished, {restarts} restarts, {refused} refused, {image_state:?}")
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn a_plan_with_restarts_goes_on_where_it_was() {
    let mut guest =
        Guest::new(&["a", "restarts", "b", "restart if needed", "c", "restart if needed", "restarts"]);
    assert_eq!(guest.live(), Some(Ending::Finished));
    insta::assert_snapshot!(guest.told.join("\n"), @r#"
    1 started at 0 of 7
    1 begun a
    1 ended a: Done
    1 begun restarts
    1 ended restarts: RestartNeeded
    1 begun b
    1 ended b: Done
    1 begun restart if needed
    1 ended restart if needed: Done
    1 restarting for 'restarts', then 4
    2 started at 4 of 7
    2 begun c
    2 ended c: Done
    2 begun restart if needed
    2 ended restart if needed: Unchanged
    2 begun restarts
    2 ended restarts: RestartNeeded
    2 restarting for 'restarts', then 7
    3 started at 7 of 7
    3 finished, 2 restarts, 0 refused, Some("IMAGE_STATE_COMPLETE")
    "#);
    assert!(!guest.fake.registered && guest.fake.sealed == 1);
    assert!(!guest.dir.path().join("disk/secret").exists());
    let before = guest.fake.performed.clone();
    assert_eq!(guest.start(true), Some(Ending::Finished), "a second logon finds it done");
    assert_eq!(guest.fake.performed, before);
}

#[test]
fn a_failure_is_told_and_the_secrets_stay_for_the_next_try() {
    let mut guest = Guest::new(&["a", "fails", "b"]);
    assert!(matches!(guest.live(), Some(Ending::Failed(_))));
    insta::assert_snapshot!(guest.told.join("\n"), @r"
    1 started at 0 of 3
    1 begun a
    1 ended a: Done
    1 begun fails
    1 failed Some(1) fails ExitCode Some(1603): ended with 1603
    ");
    assert!(!guest.fake.registered && guest.fake.sealed == 0);
}

#[test]
fn what_is_refused_fails_a_plan_and_is_passed_over_only_in_the_stand_in() {
    let mut guest = Guest::new(&["refused", "a"]);
    assert!(matches!(guest.live(), Some(Ending::Failed(Failure { cause: Cause::Refused, .. }))));
    let mut guest = Guest::new(&["refused", "a"]);
    guest.stand_in = true;
    assert_eq!(guest.live(), Some(Ending::Finished));
    insta::assert_snapshot!(guest.told.join("\n"), @r#"
    1 started at 0 of 2
    1 begun refused
    1 ended refused: Refused (not here)
    1 begun a
    1 ended a: Done
    1 finished, 0 restarts, 1 refused, Some("IMAGE_STATE_COMPLETE")
    "#);
}

#[test]
fn an_action_that_always_kills_the_guest_is_given_up() {
    let mut guest = Guest::new(&["a", "kills"]);
    assert!(matches!(guest.live(), Some(Ending::Failed(Failure { cause: Cause::KeepsDying, .. }))));
    assert_eq!(guest.fake.performed, ["a", "kills", "kills", "kills"]);
}

#[test]
fn a_loop_of_restarts_is_given_up() {
    let mut guest = Guest::new(&["restart"; 30]);
    assert!(matches!(guest.live(), Some(Ending::Failed(Failure { cause: Cause::TooManyRestarts, .. }))));
}

#[test]
fn another_plan_in_between_and_none_at_all_are_refused() {
    let mut guest = Guest::new(&["restart"]);
    assert_eq!(guest.start(true), Some(Ending::Restart));
    let other = SetupPlan::new("other", vec![]).to_json();
    fs::write(guest.dir.path().join("disk/plan.json"), other).unwrap();
    assert!(matches!(guest.start(true), Some(Ending::Failed(Failure { cause: Cause::Plan, .. }))));
    let mut empty = Guest::new(&[]);
    assert!(matches!(empty.start(false), Some(Ending::Failed(Failure { cause: Cause::Plan, .. }))));
    fs::write(empty.dir.path().join("state/setup.json"), "{").unwrap();
    assert!(matches!(empty.start(true), Some(Ending::Failed(Failure { cause: Cause::Plan, .. }))));
}

#[test]
fn two_programs_do_not_carry_out_one_plan() {
    let guest = &mut Guest::new(&["a"]);
    let held = state::lock(&guest.dir.path().join("state")).unwrap();
    assert_eq!(guest.start(true), Some(Ending::Busy));
    drop(held);
    assert_eq!(guest.start(true), Some(Ending::Finished));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_power_cut_at_any_moment_loses_nothing(moments in proptest::collection::vec(0_usize..12, 0..3)) {
        let names = ["a", "restarts", "b", "restart if needed", "c"];
        let mut guest = Guest::new(&names);
        let mut ending = None;
        let mut cuts = moments.into_iter();
        guest.fake.dies_after = cuts.next();
        let mut first = true;
        for _ in 0..20 {
            // A machine that lost its power before the program registered itself logs on for the first time again.
            ending = guest.start(first || !guest.fake.registered);
            first = false;
            match &ending {
                None => guest.fake.dies_after = cuts.next(),
                Some(Ending::Restart) => {}
                Some(_) => break,
            }
        }
        prop_assert_eq!(ending, Some(Ending::Finished));
        let mut order = guest.fake.performed.clone();
        order.dedup(); // an action that was cut off is done again
        prop_assert_eq!(order, ["a", "restarts", "b", "c"]);
        prop_assert!(guest.fake.sealed >= 1 && !guest.fake.registered);
    }
}
