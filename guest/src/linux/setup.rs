//! What of a set-up plan the Linux build truly does: it serves the stand-in for Windows Setup, and reloads a card's driver.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use no43_guest::setup::event::{Cause, Outcome};
use no43_guest::setup::first_start::{FirstStart, FirstStarted, Step};
use no43_guest::setup::{Action, DriverChange, SETUP_VERSION, Task};

use super::{Root, reload};
use crate::executor::place::Place;
use crate::executor::process::{Argument, Program};
use crate::executor::{Actor, Done, Failure, files};

/// This system, for the executor.
pub(crate) struct Linux {
    pub(crate) root: Root,
}

impl Actor for Linux {
    fn perform(&mut self, action: &Action, place: &Place) -> Result<Done, Failure> {
        match &action.task {
            Task::Copy { from, to } => {
                let to = place.guest(to)?; // a refusal comes before any look at the disk
                files::copy(&place.source(from)?, &to)
            }
            Task::Remove { path } => files::remove(&place.guest(path)?),
            Task::Password { user, file } => {
                set_password(user, &files::secret(&place.source(file)?)?).map(|()| Done::now(Outcome::Done))
            }
            Task::ComputerName { name } => {
                self.name_computer(name).map(|()| Done::now(Outcome::RestartNeeded))
            }
            Task::Command { run, codes } => {
                let path = run.first().map(String::as_str).unwrap_or_default().into();
                let arguments = run[1..].iter().map(|word| Argument::Word(word.into())).collect();
                let limit = Duration::from_secs(action.limit_seconds);
                let done = Program::new(path, arguments, place.log(&action.name)?, limit).run(codes);
                // Plans for Windows name programs of Windows; that one is not here is no failure of the plan.
                done.map_err(|failure| match failure.code {
                    Some(code) if failure.cause == Cause::NotStarted && is_not_found(code) => {
                        Failure::new(Cause::Refused, format!("there is no program {} in this Linux", run[0]))
                    }
                    _ => failure,
                })
            }
            Task::Restart { .. } => Ok(Done::now(Outcome::Done)), // the executor's own business
            Task::Driver { inf, .. } => {
                let infs = place.source(inf).map_or(0, |source| infs(&source));
                let text = format!("'driver' is done by the Windows build only; INF files there: {infs}");
                Err(Failure::new(Cause::Refused, text))
            }
            Task::CardDriver { functions, change: DriverChange::Restart } => {
                let limit = Duration::from_secs(action.limit_seconds);
                reload::reload(
                    &self.root,
                    functions,
                    &mut reload::modprobe(place.log(&action.name)?, limit),
                )?;
                Ok(Done::now(Outcome::Done))
            }
            task => Err(Failure::new(
                Cause::Refused,
                format!("'{}' is done by the Windows build only", task.kind()),
            )),
        }
    }

    /// Whoever starts the program in the stand-in starts it at every boot.
    fn stay(&mut self, _: &Place) -> Result<(), Failure> {
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn seal(&mut self) -> Result<Option<String>, Failure> {
        Err(Failure::new(Cause::Refused, "a Linux has no autologon and no answer file of Windows to remove"))
    }
}

/// How many `.inf` files Windows would be offered: the file itself, or those below a folder.
fn infs(source: &Path) -> usize {
    if source.is_dir() {
        let below = fs::read_dir(source).into_iter().flatten().flatten();
        return below.map(|entry| infs(&entry.path())).sum();
    }
    let is_inf = source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("inf"));
    usize::from(is_inf && source.is_file())
}

impl Linux {
    fn name_computer(&self, name: &str) -> Result<(), Failure> {
        let path = self.root.path("etc/hostname");
        fs::write(&path, format!("{name}\n")).map_err(|error| Failure::io(path.display(), &error))
    }

    /// Applies what an instance is given at its first start.
    pub(crate) fn first_start(&self, request: &FirstStart) -> FirstStarted {
        let mut answer = FirstStarted { version: SETUP_VERSION, ..FirstStarted::default() };
        let refused = |what| Err(Failure::new(Cause::Refused, format!("{what} is Windows' own")));
        let mut step = |field: &str, result: Result<(), Failure>| answer.steps.push(outcome(field, result));
        if let (Some(user), Some(password)) = (&request.user, &request.password) {
            step("password", set_password(user, &password.0));
        }
        if let Some(name) = &request.computer_name {
            step("computer_name", self.name_computer(name));
        }
        if request.product_key.is_some() {
            step("product_key", refused("a product key"));
        }
        if request.autologon.is_some() {
            step("autologon", refused("autologon"));
        }
        if request.parsec_team.is_some() {
            step("parsec_team", refused("Parsec for a team"));
        }
        answer.restart_needed = answer.steps.iter().any(|step| step.field == "computer_name" && step.done);
        answer
    }
}

fn outcome(field: &str, result: Result<(), Failure>) -> Step {
    let failure = result.err();
    Step {
        field: field.to_owned(),
        done: failure.is_none(),
        code: failure.as_ref().and_then(|f| f.code),
        reason: failure.map(|f| f.text),
    }
}

const fn is_not_found(code: i64) -> bool {
    code == rustix::io::Errno::NOENT.raw_os_error() as i64
}

/// `chpasswd` reads `user:password` from its standard input, so that no argument list shows the password.
fn set_password(user: &str, password: &str) -> Result<(), Failure> {
    if user.contains([':', '\n']) {
        return Err(Failure::new(Cause::Plan, format!("'{user}' is no user name")));
    }
    let failure = |error: io::Error| Failure::io("chpasswd", &error);
    let mut child = Command::new(chpasswd())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failure)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(format!("{user}:{password}\n").as_bytes()).map_err(failure)?;
    }
    let out = child.wait_with_output().map_err(failure)?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said = said.lines().next().unwrap_or("nothing").replace(password, "…");
    let code = out.status.code().map(i64::from);
    Err(Failure { code, ..Failure::new(Cause::System, format!("chpasswd refused: {said}")) })
}

/// A guest's first process may have no search path.
fn chpasswd() -> &'static Path {
    let places = ["/usr/sbin/chpasswd", "/sbin/chpasswd"].map(Path::new);
    places.into_iter().find(|path| path.exists()).unwrap_or(Path::new("chpasswd"))
}

#[cfg(test)]
mod tests {
    use no43_guest::setup::event::What;
    use no43_guest::setup::{Codes, End, RegistryValue, SUPPORT, ServiceState, SetupPlan};

    use super::*;
    use crate::executor::{self, Ending, Request};

    /// One action of each kind that can be tried without being root.
    fn all_tasks() -> Vec<Task> {
        let (text, codes) = (|t: &str| t.to_owned(), Codes::default());
        vec![
            Task::Msi { package: text("x.msi"), properties: vec![] },
            Task::Exe { program: text("x.exe"), arguments: vec![], codes: codes.clone() },
            Task::Driver { inf: text("x.inf"), install: true },
            Task::Registry { key: text(r"HKLM\A"), name: text("b"), value: RegistryValue::Dword(1) },
            Task::Service { name: text("x"), start: None, state: Some(ServiceState::Running) },
            Task::Copy { from: text("files/a"), to: text(r"%ProgramData%\Élodie\a") },
            Task::Remove { path: text(r"C:\gone") },
            Task::Command {
                run: vec![text("sh"), text("-c"), text("echo é; exit 10")],
                codes: Codes { restart: vec![10], ..Codes::default() },
            },
            Task::Group { user: text("Élodie"), sid: text("S-1-5-32-544") },
            Task::Power { scheme: None, screen_minutes: Some(0), sleep_minutes: None, hibernate: None },
            Task::Command { run: vec![text("cmd.exe"), text("/c")], codes },
        ]
    }

    fn carry_out(dir: &Path, plan: &SetupPlan) -> (Ending, Vec<What>) {
        let disk = dir.join("disk");
        fs::create_dir_all(disk.join("files")).unwrap();
        fs::write(disk.join("files/a"), "content").unwrap();
        fs::write(disk.join("plan.json"), plan.to_json()).unwrap();
        let request = Request {
            plan: Some(disk.join("plan.json")),
            state: dir.join("state"),
            drive_c: Some(dir.join("c")),
            stand_in: true,
        };
        let mut told = Vec::new();
        let mut linux = Linux { root: Root::at(dir) };
        let ending = executor::run(&request, &mut linux, &mut |_, what| told.push(what));
        (ending, told)
    }

    #[test]
    fn it_does_what_the_table_says_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = all_tasks();
        let actions =
            tasks.iter().enumerate().map(|(n, task)| Action::new(format!("{n}"), task.clone())).collect();
        let (ending, told) =
            carry_out(dir.path(), &SetupPlan { end: End::PowerOff, ..SetupPlan::new("x", actions) });
        assert_eq!(ending, Ending::Restart, "the command asked for it: {told:#?}");
        let outcomes = told.iter().filter_map(|what| match what {
            What::Ended { action, outcome, .. } => Some((&tasks[*action as usize], *outcome)),
            _ => None,
        });
        for (task, outcome) in outcomes {
            let row = SUPPORT.iter().find(|row| row.task == task.kind()).unwrap();
            let windows_program = matches!(task, Task::Command { run, .. } if run[0] == "cmd.exe");
            let refused = outcome == Outcome::Refused;
            assert_eq!(refused, row.linux.is_none() || windows_program, "{} {outcome:?}", task.kind());
        }
        assert_eq!(fs::read_to_string(dir.path().join("c/ProgramData/Élodie/a")).unwrap(), "content");
        let (ending, told) = carry_out(
            dir.path(),
            &SetupPlan::parse(&fs::read(dir.path().join("disk/plan.json")).unwrap()).unwrap(),
        );
        assert_eq!(ending, Ending::PowerOff);
        assert!(matches!(told.last(), Some(What::Finished { refused: 9, restarts: 1, .. })), "{told:#?}");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let run = ["sh", "-c", "echo before; sleep 77 & wait"].map(str::to_owned).to_vec();
        let mut action = Action::new("hangs", Task::Command { run, codes: Codes::default() });
        action.limit_seconds = 1;
        let (ending, _) = carry_out(dir.path(), &SetupPlan::new("x", vec![action]));
        let Ending::Failed(failure) = ending else { panic!("{ending:?}") };
        assert_eq!((failure.cause, failure.log), (Cause::TimedOut, vec!["before".to_owned()]));
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let run = ["sh", "-c", "echo one; echo two >&2; exit 7"].map(str::to_owned).to_vec();
        let action = Action::new("fails", Task::Command { run, codes: Codes::default() });
        let (ending, told) = carry_out(dir.path(), &SetupPlan::new("x", vec![action]));
        assert!(matches!(ending, Ending::Failed(Failure { cause: Cause::ExitCode, code: Some(7), .. })));
        let Some(What::Failed { log, text, .. }) = told.last() else { panic!("{told:?}") };
        assert_eq!((log.join(","), text.as_str()), ("one,two".into(), "sh ended with 7"));
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let action = Action::new("copy", Task::Copy { from: "no/such".into(), to: r"C:\x".into() });
        let (ending, _) = carry_out(dir.path(), &SetupPlan::new("x", vec![action]));
        assert!(matches!(ending, Ending::Failed(Failure { cause: Cause::Source, .. })), "{ending:?}");
    }

    #[test]
    fn what_is_windows_own_is_refused_at_a_first_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let request =
            br#"{"version":1,"computer_name":"PC-1","product_key":"AAAAA-BBBBB-CCCCC-DDDDD-EEEEE"}"#;
        let answer = Linux { root: Root::at(dir.path()) }.first_start(&FirstStart::parse(request).unwrap());
        let said: Vec<_> = answer.steps.iter().map(|s| (s.field.as_str(), s.done)).collect();
        assert_eq!(
            (said, answer.restart_needed),
            (vec![("computer_name", true), ("product_key", false)], true)
        );
        assert_eq!(fs::read_to_string(dir.path().join("etc/hostname")).unwrap(), "PC-1\n");
    }
}
