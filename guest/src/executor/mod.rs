//! Carrying out a set-up plan: order, state across restarts, limits and reports. What an action does to the system
//! is the business of an [`Actor`], of which there is one per operating system and one in the tests.

pub(crate) mod files;
pub(crate) mod logs;
pub(crate) mod place;
pub(crate) mod process;
mod state;
pub(crate) mod tell;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use no43_guest::setup::event::{Cause, Outcome, What};
use no43_guest::setup::{Action, End, RestartWhen, SetupPlan, Task};

use place::Place;
use state::{Finish, Running, State};

/// How often the guest may die in one action before the plan is given up.
const ATTEMPTS: u32 = 3;

/// How often the guest may restart. A plan that wants more is a loop.
const RESTARTS: u32 = 15;

/// What one operating system can do.
pub(crate) trait Actor {
    /// Does what `action` says, or fails; refuses what this system does not know.
    fn perform(&mut self, action: &Action, place: &Place) -> Result<Done, Failure>;

    /// Makes sure that the program is started again if the guest restarts now.
    fn stay(&mut self, place: &Place) -> Result<(), Failure>;

    /// Undoes [`Actor::stay`].
    fn leave(&mut self) -> Result<(), Failure>;

    /// Removes autologon and every copy of the answer file. Gives the state of the image, where there is one.
    fn seal(&mut self) -> Result<Option<String>, Failure>;
}

/// How an action ended well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) code: Option<i64>,
    pub(crate) note: Option<String>,
}

impl Done {
    pub(crate) fn now(outcome: Outcome) -> Self {
        Self { outcome, ..Self::default() }
    }
}

/// Why an action ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) code: Option<i64>,
    pub(crate) text: String,
    pub(crate) log: Vec<String>,
}

impl Failure {
    pub(crate) fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, code: None, text: text.into(), log: Vec::new() }
    }

    /// What the system said about `what`.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let cause = if error.kind() == io::ErrorKind::StorageFull { Cause::DiskFull } else { Cause::System };
        let code = error.raw_os_error().map(i64::from);
        Self { code, ..Self::new(cause, format!("{what}: {error}")) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How one run of the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything is done; the guest goes on running.
    Finished,
    /// The guest must restart now, and the program goes on afterwards, unless the plan is done.
    Restart,
    /// Everything is done, and the guest switches itself off.
    PowerOff,
    /// Another process carries the plan out.
    Busy,
    /// The plan has failed; it was told.
    Failed(Failure),
}

/// What a run is asked for.
pub(crate) struct Request {
    /// The plan; none goes on with the one that was begun.
    pub(crate) plan: Option<PathBuf>,
    /// Folder of state, logs and the plan's copy.
    pub(crate) state: PathBuf,
    /// What `C:` is in a Linux guest.
    pub(crate) drive_c: Option<PathBuf>,
    /// Pass over what this build refuses, and tell so.
    pub(crate) stand_in: bool,
}

/// Carries the plan out until it is done, has failed, or a restart is due.
pub(crate) fn run(request: &Request, actor: &mut dyn Actor, tell: &mut dyn FnMut(u32, What)) -> Ending {
    let lock = match state::lock(&request.state) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ending::Busy,
        Err(failure) => return failed(0, None, failure, tell),
    };
    let ending = match state::begin(request) {
        Ok((plan, place, state)) => Run { plan, place, state, actor, tell, stand_in: request.stand_in }.go(),
        Err(failure) => failed(0, None, failure, tell),
    };
    drop(lock);
    ending
}

fn failed(
    run: u32,
    action: Option<(u32, &str)>,
    failure: Failure,
    tell: &mut dyn FnMut(u32, What),
) -> Ending {
    tell(
        run,
        What::Failed {
            action: action.map(|(index, _)| index),
            name: action.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            cause: failure.cause,
            code: failure.code,
            text: failure.text.clone(),
            log: failure.log.clone(),
        },
    );
    Ending::Failed(failure)
}

struct Run<'a> {
    plan: SetupPlan,
    place: Place,
    state: State,
    actor: &'a mut dyn Actor,
    tell: &'a mut dyn FnMut(u32, What),
    stand_in: bool,
}

impl Run<'_> {
    fn go(mut self) -> Ending {
        let started = Instant::now();
        let actions = count(self.plan.actions.len());
        (self.tell)(
            self.state.runs,
            What::Started {
                plan: self.plan.id.clone(),
                program: env!("CARGO_PKG_VERSION").to_owned(),
                actions,
                from: self.state.next,
            },
        );
        let ended = self.actions().and_then(|restart| match restart {
            true => Ok(Ending::Restart),
            false => self.finish(started.elapsed()),
        });
        self.state.ms += millis(started.elapsed());
        match ended {
            Ok(ending) => match self.save() {
                Ok(()) => ending,
                Err(failure) => failed(self.state.runs, None, failure, self.tell),
            },
            Err(failure) => {
                let index = self.state.running.take().map(|running| running.action);
                let _ = self.save(); // the failure before is the one to tell
                let _ = self.actor.leave();
                let name = index.and_then(|i| self.plan.actions.get(i as usize)).map(|a| a.name.clone());
                let at = index.zip(name.as_deref());
                failed(self.state.runs, at, failure, self.tell)
            }
        }
    }

    /// The actions that are left; `true` if the guest must restart before the next one.
    fn actions(&mut self) -> Result<bool, Failure> {
        while let Some(action) = self.plan.actions.get(self.state.next as usize).cloned() {
            self.enter()?;
            let index = self.state.next;
            (self.tell)(self.state.runs, What::Begun { action: index, name: action.name.clone() });
            if let Task::Restart { only_if_needed } = action.task {
                let reason = self.state.restart_needed.clone();
                let due = !only_if_needed || reason.is_some();
                self.ended(
                    &action,
                    &Done::now(if due { Outcome::Done } else { Outcome::Unchanged }),
                    Duration::ZERO,
                )?;
                if due {
                    return self.restart(reason.unwrap_or(action.name)).map(|()| true);
                }
                continue;
            }
            let begun = Instant::now();
            let done = self.perform(&action)?;
            self.ended(&action, &done, begun.elapsed())?;
            if done.outcome == Outcome::RestartNeeded && action.restart == RestartWhen::Now {
                return self.restart(action.name).map(|()| true);
            }
        }
        Ok(false)
    }

    /// Writes down that the next action begins, before it does.
    fn enter(&mut self) -> Result<(), Failure> {
        let action = self.state.next;
        let attempt = match &self.state.running {
            Some(running) if running.action == action => running.attempt + 1,
            _ => 1,
        };
        self.state.running = Some(Running { action, attempt });
        if attempt > ATTEMPTS {
            return Err(Failure::new(
                Cause::KeepsDying,
                format!("the guest died {ATTEMPTS} times in this action"),
            ));
        }
        self.save()?;
        self.actor.stay(&self.place)
    }

    fn perform(&mut self, action: &Action) -> Result<Done, Failure> {
        match self.actor.perform(action, &self.place) {
            Err(failure) if failure.cause == Cause::Refused && self.stand_in => {
                self.state.refused += 1;
                Ok(Done { outcome: Outcome::Refused, code: None, note: Some(failure.text) })
            }
            done => done,
        }
    }

    fn ended(&mut self, action: &Action, done: &Done, took: Duration) -> Result<(), Failure> {
        let index = self.state.next;
        if done.outcome == Outcome::RestartNeeded {
            self.state.restart_needed.get_or_insert_with(|| action.name.clone());
        }
        self.state.next += 1;
        self.state.running = None;
        self.save()?;
        (self.tell)(
            self.state.runs,
            What::Ended {
                action: index,
                name: action.name.clone(),
                outcome: done.outcome,
                code: done.code,
                ms: millis(took),
                note: done.note.clone(),
            },
        );
        Ok(())
    }

    /// Counts and tells the restart; whoever called [`run`] carries it out.
    fn restart(&mut self, reason: String) -> Result<(), Failure> {
        self.state.restarts += 1;
        if self.state.restarts > RESTARTS {
            let text = format!("the plan wants more than {RESTARTS} restarts, the last one for '{reason}'");
            return Err(Failure::new(Cause::TooManyRestarts, text));
        }
        self.state.restart_needed = None;
        self.actor.stay(&self.place)?;
        (self.tell)(self.state.runs, What::Restarting { action: self.state.next, reason });
        Ok(())
    }

    /// After the last action: the restart that somebody still needs, then the seal.
    fn finish(&mut self, run_time: Duration) -> Result<Ending, Failure> {
        if let Some(reason) = self.state.restart_needed.clone() {
            return self.restart(reason).map(|()| Ending::Restart);
        }
        let again = self.state.finished.is_some();
        let finish = match self.state.finished.clone() {
            Some(finish) => finish,
            None => {
                let image_state = if self.plan.seal { self.seal()? } else { None };
                self.place.remove_secrets(&self.plan.secrets)?;
                Finish { ms: self.state.ms + millis(run_time), image_state }
            }
        };
        self.state.finished = Some(finish.clone());
        self.save()?;
        self.actor.leave()?; // only now: who dies before this is started again, and comes here again
        (self.tell)(
            self.state.runs,
            What::Finished {
                ms: finish.ms,
                restarts: self.state.restarts,
                refused: self.state.refused,
                image_state: finish.image_state,
            },
        );
        Ok(match self.plan.end {
            _ if again => Ending::Finished,
            End::Stay => Ending::Finished,
            End::Restart => Ending::Restart,
            End::PowerOff => Ending::PowerOff,
        })
    }

    fn seal(&mut self) -> Result<Option<String>, Failure> {
        match self.actor.seal() {
            Err(failure) if failure.cause == Cause::Refused && self.stand_in => {
                self.state.refused += 1;
                Ok(None)
            }
            sealed => sealed,
        }
    }

    fn save(&self) -> Result<(), Failure> {
        self.state.save(self.place.state())
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
