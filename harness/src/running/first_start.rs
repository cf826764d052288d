//! What an installed guest is given when it first answers: the recipe's own password, computer name, product key and
//! Parsec team, which no image holds.
//!
//! The secrets are read by the command that starts the machine, go through a pipe to its supervisor, and from there through
//! the guest agent to the standard input of `no43-guest first-start`. They are in no file, argument, event or record.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use no43_builder::plan::Plan;
use no43_builder::secret::{self, SecretError};
use no43_guest::setup::SETUP_VERSION;
use no43_guest::setup::first_start::{FirstStart, FirstStarted, ParsecTeam, Secret, parse_first_started};
use no43_machine::agent::{ExecLimits, ShutdownMode};
use no43_machine::qmp::wait_event;
use no43_machine::{Agent, Event};

use super::control::Shared;
use crate::guest_program::guest_program;
use crate::instance::Instance;
use crate::words;

/// Windows asks nobody outside for any of it; a product key is the slowest.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);
/// An installer takes more; the guest's own limits are below it.
const INSTALLER_LIMIT: Duration = Duration::from_secs(720);
/// From the request to restart to QEMU's RESET: the guest stops its services first.
const REBOOT_LIMIT: Duration = Duration::from_secs(180);
/// The longest name of a Windows computer.
const NAME_LIMIT: usize = 15;

/// What this instance's guest still has to be given; `None` for one that was not installed, or has everything. Secrets are
/// read only if they are still to be given.
///
/// # Errors
/// A secret that cannot be read, without any part of it.
pub fn wanted(plan: &Plan, instance: &Instance) -> Result<Option<FirstStart>, SecretError> {
    let system = &instance.system;
    if system.sealed.is_none() {
        return Ok(None);
    }
    let lacks = |field: &str| !system.given.iter().any(|given| given == field);
    let mut request = FirstStart { version: SETUP_VERSION, ..FirstStart::default() };
    if lacks("password") {
        (request.user, request.password) = user(plan)?.unzip();
    }
    if lacks("computer_name") {
        request.computer_name = plan.guest.hostname.clone().or_else(|| computer_name(instance.name()));
    }
    if let Some(source) = plan.guest.product_key.as_ref().filter(|_| lacks("product_key")) {
        request.product_key = Some(Secret(secret::read(source)?.reveal().to_owned()));
    }
    if let Some(team) = plan.guest.parsec_team.as_ref().filter(|_| lacks("parsec_team")) {
        let key = Secret(secret::read(&team.key)?.reveal().to_owned());
        request.parsec_team = Some(ParsecTeam { id: team.id.clone(), key });
    }
    let nothing = FirstStart { version: SETUP_VERSION, ..FirstStart::default() };
    Ok((request != nothing).then_some(request))
}

/// A name that Windows takes, made from an instance's; `None` if nothing is left of it.
fn computer_name(instance: &str) -> Option<String> {
    let letters: String =
        instance.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(NAME_LIMIT).collect();
    let name = letters.trim_matches('-');
    name.contains(|c: char| c.is_ascii_alphabetic()).then(|| name.to_owned())
}

/// What has the recipe's user logged on at each start from now on, for a guest whose disk is thrown away; `None` without a
/// user or a password.
///
/// # Errors
/// A secret that cannot be read, without any part of it.
pub(crate) fn log_on(plan: &Plan) -> Result<Option<FirstStart>, SecretError> {
    Ok(user(plan)?.map(|(user, password)| FirstStart {
        version: SETUP_VERSION,
        user: Some(user),
        password: Some(password),
        autologon: Some(true),
        ..FirstStart::default()
    }))
}

/// The recipe's user and that user's password, if it names one.
fn user(plan: &Plan) -> Result<Option<(String, Secret)>, SecretError> {
    let Some(user) = &plan.guest.user else { return Ok(None) };
    let Some(source) = &user.password else { return Ok(None) };
    Ok(Some((user.name.clone(), Secret(secret::read(source)?.reveal().to_owned()))))
}

/// Gives it. The answer says of each field whether it is so now.
pub(crate) fn give(agent: &Agent, request: &FirstStart) -> Result<FirstStarted, String> {
    let windows = agent.is_windows().unwrap_or(false);
    let program = guest_program(windows);
    let input = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    let limit = if request.parsec_team.is_some() { LIMIT + INSTALLER_LIMIT } else { LIMIT };
    let limits = ExecLimits { input: Some(input), ..ExecLimits::within(limit) };
    let output = agent.exec(&[program, "first-start"], &limits).map_err(|error| error.to_string())?;
    parse_first_started(&output.stdout).map_err(|error| {
        let said = words::clean_to(&output.stderr_text(), 400);
        if said.is_empty() { error.to_string() } else { said }
    })
}

/// What was not done, in words.
pub(crate) fn refused(answer: &FirstStarted) -> Vec<String> {
    let words = |step: &no43_guest::setup::first_start::Step| {
        let code = step.code.map(|code| format!(" (error {code})")).unwrap_or_default();
        let why = step.reason.as_deref().unwrap_or("it gave no reason");
        let field = step.field.replace('_', " ");
        words::clean_to(&format!("the guest did not take its {field}: {why}{code}"), 400)
    };
    answer.steps.iter().filter(|step| !step.done).map(words).collect()
}

/// What a guest is given when it first answers, and whose it is.
pub(super) struct Giving {
    pub(super) request: FirstStart,
    pub(super) instance: Instance,
    pub(super) events: Receiver<Event>,
    pub(super) limit: Duration,
}

impl Giving {
    /// Gives it, notes what was taken, and restarts the guest if only then all of it counts.
    pub(super) fn to(self, agent: &Agent, shared: &Shared) {
        let answer = match give(agent, &self.request) {
            Ok(answer) => answer,
            Err(why) => {
                let why = words::clean_to(&why, 400);
                return shared.hub.warn(format!("the guest did not take its password and name: {why}"));
            }
        };
        let again = |why| shared.hub.warn(format!("{why}; tried again at the next start"));
        refused(&answer).into_iter().for_each(again);
        let taken: Vec<String> =
            answer.steps.iter().filter(|step| step.done).map(|step| step.field.clone()).collect();
        if let Err(error) = self.instance.note_given(&taken) {
            shared.hub.warn(error.to_string());
        }
        if !taken.is_empty() {
            shared.hub.note(format!("first start: the guest has its {}", taken.join(", ").replace('_', " ")));
        }
        if !answer.restart_needed {
            return;
        }
        shared.hub.note("the guest restarts once, so that its name counts");
        let asked = agent.shutdown(ShutdownMode::Reboot).is_ok();
        let reset = |event: &Event| (event.name == "RESET").then_some(());
        if !asked || wait_event(&self.events, REBOOT_LIMIT, reset).is_none() {
            return shared.hub.warn("the guest did not restart: its name counts from its next start on");
        }
        if agent.wait_ready(self.limit, |_| ()).is_err() {
            shared.hub.warn("the guest's agent did not answer again after the restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_s_name_becomes_a_computer_s() {
        let names = ["windows10-gaming", "w.x_y", "2024", "a-very-long-name-indeed", "-"].map(computer_name);
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        assert_eq!(names, [Some("windows10-gamin"), Some("w-x-y"), None, Some("a-very-long-nam"), None]);
    }
}
