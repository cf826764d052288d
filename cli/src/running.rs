//! What the commands about running machines share: where they are, and taking over those whose no43 is gone.

use std::path::PathBuf;
use std::time::Duration;

use no43_builder::install::{self, Installation};
use no43_harness::exit_codes;
use no43_harness::guest_program::hang_bell;
use no43_harness::instance::Instances;
use no43_harness::running::{Client, ClientError, Left, Refusal, Row, Runs};
use no43_host::{Roots, StateDir};
use no43_machine::agent::Agent;

use crate::context::{Failure, OrExit as _};

/// This host's running machines.
pub(crate) fn runs() -> Result<Runs, Failure> {
    let state = StateDir::open_default().or_exit(exit_codes::HOST_SETUP)?;
    Ok(Runs::under(&state, &Roots::real()))
}

/// This program, to be started again as a supervisor.
pub(crate) fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().or_exit(exit_codes::HOST_SETUP)
}

/// Takes over machines whose no43 is gone, and says so.
pub(crate) fn tend(runs: &Runs) -> Result<(), Failure> {
    for adopted in runs.tend(&this_program()?, Instances::open_default().ok().as_ref()) {
        eprintln!("  note     {}: {}", adopted.name, adopted.what);
    }
    Ok(())
}

/// Where instances are kept.
pub(crate) fn instances() -> Result<Instances, Failure> {
    Instances::open_default().or_exit(exit_codes::INSTANCE)
}

/// A connection to the no43 that watches `name`.
pub(crate) fn connect(runs: &Runs, name: &str) -> Result<Client, Failure> {
    Client::connect(runs, name).map_err(|error| client_failure(&error))
}

pub(crate) fn client_failure(error: &ClientError) -> Failure {
    Failure::new(exit_codes::INSTANCE, error)
}

pub(crate) fn refused(refusal: &Refusal) -> Failure {
    Failure::new(refusal.code, &refusal.cause)
}

/// A running machine by name; a wrong name is answered with what runs.
pub(crate) fn running(runs: &Runs, name: &str) -> Result<Row, Failure> {
    if let Some(row) = runs.row(name).filter(|row| row.left != Left::Dead) {
        return Ok(row);
    }
    let others: Vec<String> = runs.list().into_iter().map(|row| row.note.name).collect();
    let others =
        if others.is_empty() { "nothing runs".to_owned() } else { format!("running: {}", others.join(", ")) };
    Err(Failure::new(exit_codes::INSTANCE, format!("'{name}' is not running; {others}")))
}

/// The installation of the recipe `name`, unless an instance of that name runs.
pub(crate) fn installation(name: &str) -> Result<Option<Installation>, Failure> {
    match runs()?.row(name).filter(|row| row.left != Left::Dead) {
        Some(_) => Ok(None),
        None => Ok(install::running(name)),
    }
}

/// The guest's agent, if it answers.
pub(crate) fn agent(runs: &Runs, name: &str) -> Result<Agent, Failure> {
    /// An agent that lives answers within this, also without KVM.
    const LIMIT: Duration = Duration::from_secs(15);
    running(runs, name)?;
    let agent = Agent::on_socket(runs.dirs(name).agent_socket());
    agent.ping(LIMIT).map_err(|error| {
        Failure::new(
            exit_codes::FAILED_GUEST,
            format!(
                "the agent in '{name}' does not answer (still starting, or another command uses it): {error}"
            ),
        )
    })?;
    hang_bell(&agent, &runs.dirs(name));
    Ok(agent)
}

/// "10 min", "90 s", "2h", or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "write a number and s, min or h, such as \"10 min\"".to_owned())?;
    let factor = match text[digits..].trim() {
        "" | "s" => 1,
        "min" | "m" => 60,
        "h" => 3600,
        other => return Err(format!("'{other}' is no unit of time: use s, min or h")),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| "it is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| duration(text).map(|d| d.as_secs());
        assert_eq!([seconds("90"), seconds("10 min"), seconds("2h")], [Ok(90), Ok(600), Ok(7200)]);
        assert!(seconds("soon").is_err() && seconds("3 days").is_err() && seconds("").is_err());
    }
}
