//! Changes of a card's driver in a running guest: what the guest is told, and how it went.

use crate::guest_program::guest_program;
use crate::words;
use no43_builder::driver::updates;
use no43_builder::plan::{DriverStep, Plan};
use no43_guest::protocol::Report;
use no43_guest::setup::event::{Event, What};
use no43_guest::setup::{
    Action, Codes, DriverChange, LINUX_STATE, SetupPlan, Task, WINDOWS_STATE, find_plan_command,
};
use no43_machine::agent::{Agent, ExecLimits, GuestPid};
use std::time::{Duration, Instant};

use super::guest::Over;

/// Nothing is copied: modules or devices stop and start.
pub(super) const RELOAD_LIMIT: Duration = Duration::from_secs(180);
/// As long as a layer's: the longest known installation took five minutes, a module without KVM twenty.
pub(super) const INSTALL_LIMIT: Duration = Duration::from_secs(3600);
/// A question of a second.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// Between two questions whether the guest is done.
const PAUSE: Duration = Duration::from_millis(500);
/// Most that is read of what the guest wrote about it.
const WORDS: u64 = 256 << 10;
/// `no43-guest setup --no-restart` ends with it where the guest must restart.
const RESTART_DUE: i64 = 3;
/// Where a driver of Windows' store waits for its return, below the folder of the state.
const KEPT: &str = "kept";

/// The version of the driver that must run.
#[derive(Debug, Default)]
pub(super) struct Version {
    /// What checks ask for; `None`: any.
    pub(super) asked: Option<String>,
    is: Option<String>,
    before: Option<String>,
}

impl Version {
    pub(super) fn of(plan: &Plan) -> Self {
        let is = plan.driver.version.clone().or_else(|| plan.checks.driver_version.clone());
        Self { asked: plan.checks.driver_version.clone(), is, before: None }
    }

    /// What must run after `step`.
    pub(super) fn after(&mut self, step: &DriverStep, plan: &Plan) {
        match step {
            DriverStep::Reload | DriverStep::Reinstall => return,
            DriverStep::Package(name) => {
                self.before = self.is.take();
                self.is = plan.driver.other(name).map(|one| one.version.to_string());
            }
            DriverStep::Rollback => self.is = self.before.take(),
        }
        self.asked.clone_from(&self.is);
    }
}

/// What the guest is told to do.
pub(super) enum Work {
    /// A set-up plan that is written into the guest.
    Plan(SetupPlan),
    /// A plan that lies on a disk, in this folder.
    OnDisk(String),
    /// A program, after which the guest restarts.
    Program(Vec<String>),
}

/// Gives whether the guest must restart.
pub(super) fn carry_out(
    agent: &Agent,
    work: &Work,
    limit: Duration,
    over: &Over<'_>,
) -> Result<bool, String> {
    let windows = agent.is_windows().map_err(|error| error.to_string())?;
    let (root, slash) = if windows { (WINDOWS_STATE, '\\') } else { (LINUX_STATE, '/') };
    let program = guest_program(windows);
    let place = |name: &str| format!("{root}{slash}driver{slash}{name}");
    prepare(agent, windows, &place)?;
    let said = place("said");
    let plan = match work {
        Work::Program(argv) => {
            let mut command =
                vec!["sh", "-c", r#"out=$1; shift; "$@" > "$out" 2>&1 < /dev/null"#, "sh", &said];
            command.extend(argv.iter().map(String::as_str));
            let pid = agent.spawn(&command).map_err(|error| error.to_string())?;
            let code = wait(agent, pid, limit, over)?;
            return if code == Some(0) { Ok(true) } else { Err(ended(code, last_line(agent, &said))) };
        }
        Work::Plan(plan) => {
            let file = place("plan.json");
            write(agent, &file, plan.to_json().as_bytes())?;
            file
        }
        Work::OnDisk(folder) => find(agent, folder)?,
    };
    // a channel is only ever opened
    write(agent, &said, b"")?;
    let state = place("state");
    let argv = [program, "setup", "--plan", &plan, "--state", &state, "--no-restart", "--channel", &said];
    let pid = agent.spawn(&argv).map_err(|error| error.to_string())?;
    match wait(agent, pid, limit, over)? {
        Some(0) => Ok(false),
        Some(RESTART_DUE) => Ok(true),
        code => Err(ended(code, last_failure(agent, &said))),
    }
}

fn wait(agent: &Agent, pid: GuestPid, limit: Duration, over: &Over<'_>) -> Result<Option<i64>, String> {
    let began = Instant::now();
    loop {
        if let Some(why) = over() {
            return Err(why);
        }
        if let Some(end) = agent.ended(pid).map_err(|error| error.to_string())? {
            return Ok(end.code);
        }
        if began.elapsed() > limit {
            return Err(format!("not done within {}", words::limit(limit)));
        }
        std::thread::sleep(PAUSE);
    }
}

/// A plan of one change. `lifts`: Windows may have been told to install no other driver.
pub(super) fn change(name: &str, functions: Vec<String>, change: DriverChange, lifts: bool) -> SetupPlan {
    let task = Task::CardDriver { functions, change };
    let limit_seconds = if lifts { INSTALL_LIMIT } else { RELOAD_LIMIT }.as_secs();
    let actions = lifts.then(updates::lift).into_iter();
    let actions = actions.chain([Action { limit_seconds, ..Action::new(name, task) }]).collect();
    SetupPlan { seal: false, ..SetupPlan::new(format!("driver/{name}"), actions) }
}

/// The driver package leaves Windows' store, with every device that it drives, and comes back from a copy.
pub(super) fn reinstall(report: &Report, functions: Vec<String>) -> Result<SetupPlan, String> {
    let inf_of = |address: &String| {
        let node = report.function(address).and_then(|function| function.node.as_ref());
        node.and_then(|node| node.inf.clone())
            .ok_or_else(|| format!("{address} has no driver to install again"))
    };
    let mut infs = functions.iter().map(inf_of).collect::<Result<Vec<_>, _>>()?;
    infs.sort();
    infs.dedup();
    let [inf] = infs.as_slice() else {
        return Err(format!("the cards have different drivers: {}", infs.join(", ")));
    };
    if !is_oem(inf) {
        return Err(format!("'{}' is a driver of Windows itself and cannot be taken out", words::clean(inf)));
    }
    let kept = format!(r"{WINDOWS_STATE}\driver\{KEPT}");
    // Windows Installer's codes for a restart; which of them pnputil gives was not seen
    let pnputil = |name: &str, words: &[&str]| {
        let run = ["pnputil.exe"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let codes = Codes { restart: vec![3010, 1641], ..Codes::default() };
        Action { limit_seconds: INSTALL_LIMIT.as_secs(), ..Action::new(name, Task::Command { run, codes }) }
    };
    let task = Task::CardDriver { functions, change: DriverChange::Use(KEPT.to_owned()) };
    let actions = vec![
        updates::lift(),
        pnputil("a copy of the driver", &["/export-driver", inf, &kept]),
        pnputil("out of Windows' store", &["/delete-driver", inf, "/uninstall", "/force"]),
        Action { limit_seconds: INSTALL_LIMIT.as_secs(), ..Action::new("back from the copy", task) },
    ];
    Ok(SetupPlan { seal: false, ..SetupPlan::new("driver/reinstallation", actions) })
}

/// `oem12.inf`: the guest names it, and it becomes an argument.
fn is_oem(inf: &str) -> bool {
    let lower = inf.to_ascii_lowercase();
    let number = lower.strip_prefix("oem").and_then(|rest| rest.strip_suffix(".inf"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An empty folder for plan, state and words; what an earlier change left is gone.
fn prepare(agent: &Agent, windows: bool, place: &dyn Fn(&str) -> String) -> Result<(), String> {
    let (folder, kept) = (place(""), place(KEPT));
    let folder = folder.trim_end_matches(['/', '\\']);
    let line = match windows {
        true => format!("(if exist {folder} rmdir /s /q {folder}) & mkdir {kept}"),
        false => format!("rm -rf {folder} && mkdir -p {kept}"),
    };
    let argv = if windows { ["cmd.exe", "/d", "/c", &line] } else { ["sh", "-e", "-c", &line] };
    let output = agent.exec(&argv, &ExecLimits::within(ASK_LIMIT)).map_err(|error| error.to_string())?;
    match output.success() {
        true => Ok(()),
        false => Err(format!("failed to make {kept} in the guest: {}", words::clean(&output.stderr_text()))),
    }
}

/// The plan of a disk whose letter only Windows knows.
fn find(agent: &Agent, folder: &str) -> Result<String, String> {
    let command = find_plan_command(folder);
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = agent.exec(&argv, &ExecLimits::within(ASK_LIMIT)).map_err(|error| error.to_string())?;
    let text = output.stdout_text();
    let letter = text.trim().chars().next().filter(char::is_ascii_alphabetic);
    let letter = letter.ok_or_else(|| format!("Windows shows no disk with {folder}"))?;
    Ok(format!(r"{letter}:\{folder}\plan.json"))
}

fn write(agent: &Agent, file: &str, bytes: &[u8]) -> Result<(), String> {
    agent.write_file(file, bytes).map_err(|error| format!("failed to write {file} in the guest: {error}"))
}

fn ended(code: Option<i64>, said: Option<String>) -> String {
    let code = code.map_or_else(|| "without an exit code".to_owned(), |code| format!("with {code}"));
    said.unwrap_or_else(|| format!("the guest's program ended {code} and said nothing"))
}

/// The last line that a program wrote.
fn last_line(agent: &Agent, file: &str) -> Option<String> {
    let (bytes, _) = agent.read_file_prefix(file, WORDS).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(words::clean).find(|line| !line.trim().is_empty())
}

/// Why the guest program gave a plan up, in its own words.
fn last_failure(agent: &Agent, file: &str) -> Option<String> {
    let (bytes, _) = agent.read_file_prefix(file, WORDS).ok()?;
    failure_in(&bytes)
}

fn failure_in(bytes: &[u8]) -> Option<String> {
    let events = bytes.split(|byte| *byte == b'\n').filter_map(Event::find).filter_map(Result::ok);
    let mut failed = events.filter_map(|event| match event.what {
        What::Failed { name, text, log, .. } => Some((name, text, log)),
        _ => None,
    });
    let (name, text, log) = failed.next_back()?;
    let said = log.last().map(|line| format!("; {line}")).unwrap_or_default();
    Some(words::clean(&format!("{name}: {text}{said}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::scripted;
    use no43_guest::protocol::{DevNode, GuestFunction};
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    const CARD: &str = "0000:01:00.0";

    fn report(inf: Option<&str>) -> Report {
        let node = DevNode { inf: inf.map(str::to_owned), ..DevNode::default() };
        let card = GuestFunction { address: CARD.into(), node: Some(node), ..GuestFunction::default() };
        Report { functions: vec![card], ..Report::default() }
    }

    #[test]
    fn a_driver_leaves_the_store_and_comes_back_from_a_copy() {
        let of = |inf| reinstall(&report(inf), vec![CARD.into()]);
        let plan = of(Some("oem12.inf")).unwrap();
        assert_eq!(plan.check(), Ok(()));
        let run = |action: &Action| match &action.task {
            Task::Command { run, .. } => run.join(" "),
            task => format!("{task:?}"),
        };
        let lines: Vec<_> = plan.actions.iter().map(run).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        Registry { key: "HKLM\\SOFTWARE\\Policies\\Microsoft\\Windows\\DeviceInstall\\Restrictions", name: "DenyDeviceIDs", value: Delete }
        pnputil.exe /export-driver oem12.inf C:\ProgramData\no43\driver\kept
        pnputil.exe /delete-driver oem12.inf /uninstall /force
        CardDriver { functions: ["0000:01:00.0"], change: Use("kept") }
        "#);
        // what the guest names becomes an argument of a program
        for (inf, why) in [
            (Some("display.inf"), "'display.inf' is a driver of Windows itself and cannot be taken out"),
            (Some("oem1.inf /x"), "'oem1.inf /x' is a driver of Windows itself and cannot be taken out"),
            (None, "0000:01:00.0 has no driver to install again"),
        ] {
            assert_eq!(of(inf).unwrap_err(), why);
        }
        assert_eq!(change("rollback", vec![CARD.into()], DriverChange::RollBack, true).check(), Ok(()));
    }

    #[test]
    fn versions_follow_the_steps() {
        let mut plan = crate::verify::tests::plan(Vec::new());
        plan.driver.version = Some("466.11".into());
        plan.driver.others = serde_json::from_value(json!([{
            "name": "new", "version": "472.12", "source": {"linux": {"packages": [], "run": null, "version": null, "limit": 1}},
        }]))
        .unwrap();
        let mut version = Version::of(&plan);
        assert_eq!(version.asked, None, "the recipe names none");
        let mut after = |step: DriverStep| {
            version.after(&step, &plan);
            version.asked.clone().unwrap_or_default()
        };
        assert_eq!(after(DriverStep::Reload), "");
        assert_eq!(after(DriverStep::Package("new".into())), "472.12");
        assert_eq!(after(DriverStep::Reinstall), "472.12");
        assert_eq!(after(DriverStep::Rollback), "466.11");
    }

    /// What a guest was asked to run and to write.
    type Told = Arc<Mutex<Vec<String>>>;

    /// A guest in which our program ends with `code` and has said this.
    fn guest(os: &'static str, code: i64, said: &'static str) -> (tempfile::TempDir, Agent, Told) {
        let told = Told::default();
        let log = Arc::clone(&told);
        let mut output = String::new();
        let (dir, socket) = scripted::agent(move |command, arguments| {
            let tell = |line: String| log.lock().unwrap().push(line);
            match command {
                "guest-get-osinfo" => json!({ "id": os }),
                "guest-exec" => {
                    let argv = scripted::command(arguments).join(" ");
                    output = if argv.contains("@echo") { "E\r\n".into() } else { String::new() };
                    tell(argv);
                    json!({ "pid": if arguments["capture-output"] == true { 1 } else { 2 } })
                }
                "guest-exec-status" if arguments["pid"] == 2 => scripted::ended(code, ""),
                "guest-exec-status" => scripted::ended(0, &output),
                "guest-file-open" => {
                    tell(format!(
                        "{} {}",
                        arguments["mode"].as_str().unwrap(),
                        arguments["path"].as_str().unwrap()
                    ));
                    json!(1000)
                }
                "guest-file-write" => scripted::written(arguments).1,
                "guest-file-read" => scripted::read(said.as_bytes()),
                _ => json!({}),
            }
        });
        let agent = Agent::on_socket(socket);
        (dir, agent, told)
    }

    fn work() -> Work {
        Work::Plan(change("reload", vec![CARD.into()], DriverChange::Restart, false))
    }

    const SECOND: Duration = Duration::from_secs(20);

    #[test]
    fn a_windows_is_told_to_take_the_driver_of_a_disk() {
        let (_dir, agent, told) = guest("mswindows", 3, "");
        let work = Work::OnDisk(no43_builder::windows::driver_folder("472.12"));
        assert_eq!(carry_out(&agent, &work, SECOND, &|| None), Ok(true), "a restart is due");
        insta::assert_snapshot!(told.lock().unwrap().join("\n"), @r"
        cmd.exe /d /c (if exist C:\ProgramData\no43\driver rmdir /s /q C:\ProgramData\no43\driver) & mkdir C:\ProgramData\no43\driver\kept
        cmd.exe /d /c for %d in (C D E F G H I J K L M N O P Q R S T U V W X Y Z) do @if exist %d:\no43\472.12\plan.json @echo %d
        wb C:\ProgramData\no43\driver\said
        C:\Program Files\no43\no43-guest.exe setup --plan E:\no43\472.12\plan.json --state C:\ProgramData\no43\driver\state --no-restart --channel C:\ProgramData\no43\driver\said
        ");
    }

    #[test]
    fn a_linux_is_told_to_carry_a_plan_out_or_to_run_an_installer() {
        let (_dir, agent, told) = guest("debian", 0, "");
        assert_eq!(carry_out(&agent, &work(), SECOND, &|| None), Ok(false));
        let installer = Work::Program(vec!["sh".into(), "-c".into(), "install".into()]);
        assert_eq!(carry_out(&agent, &installer, SECOND, &|| None), Ok(true));
        insta::assert_snapshot!(told.lock().unwrap().join("\n"), @r#"
        sh -e -c rm -rf /var/lib/no43/driver && mkdir -p /var/lib/no43/driver/kept
        wb /var/lib/no43/driver/plan.json
        wb /var/lib/no43/driver/said
        no43-guest setup --plan /var/lib/no43/driver/plan.json --state /var/lib/no43/driver/state --no-restart --channel /var/lib/no43/driver/said
        sh -e -c rm -rf /var/lib/no43/driver && mkdir -p /var/lib/no43/driver/kept
        sh -c out=$1; shift; "$@" > "$out" 2>&1 < /dev/null sh /var/lib/no43/driver/said sh -c install
        "#);
    }

    #[test]
    fn a_failure_is_told_in_the_guests_own_words() {
        let said = Event {
            run: 1,
            seq: 1,
            at_ms: 1,
            what: What::Failed {
                action: Some(0),
                name: "reload".into(),
                cause: no43_guest::setup::event::Cause::ExitCode,
                code: Some(1),
                text: "modprobe -r nvidia: ended with 1".into(),
                log: vec!["modprobe: FATAL: Module nvidia is in use.".into()],
            },
        };
        let (_dir, agent, _) = guest("debian", 1, said.line().leak());
        let why = carry_out(&agent, &work(), SECOND, &|| None).unwrap_err();
        insta::assert_snapshot!(why, @"reload: modprobe -r nvidia: ended with 1; modprobe: FATAL: Module nvidia is in use.");
        let (_dir, agent, _) = guest("debian", 127, "sh: apt-get: not found\n\n");
        let why = carry_out(&agent, &Work::Program(vec!["x".into()]), SECOND, &|| None).unwrap_err();
        assert_eq!(why, "sh: apt-get: not found");
        let (_dir, agent, _) = guest("debian", 9, "");
        assert_eq!(
            carry_out(&agent, &work(), SECOND, &|| None).unwrap_err(),
            "the guest's program ended with 9 and said nothing"
        );
        let over = || Some("stopped".to_owned());
        assert_eq!(carry_out(&agent, &work(), SECOND, &over).unwrap_err(), "stopped");
    }

    proptest! {
        #[test]
        fn what_a_guest_wrote_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,40}") {
            let _ = failure_in(&bytes);
            let event = [b"no43-setup 00000000 {", text.as_bytes(), b"}\n", &bytes].concat();
            let _ = failure_in(&event);
            let name = format!("oem{text}.inf");
            assert_eq!(is_oem(&name), !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        }
    }
}
