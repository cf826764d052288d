//! The running guest as the checks ask it: `no43-guest` through the guest agent.

use crate::checks::{DESKTOP, DESKTOP_FOLDER, Guest, Ran};
use crate::guest_program::{guest_program, hang_bell};
use crate::stop::Stop;
use crate::words;
use anyhow::{Context as _, Result, bail};
use no43_guest::protocol::{MESSAGE_LIMIT, Painted, Report, parse_painted, parse_report};
use no43_guest::work::{WorkReport, parse_work};
use no43_machine::Machine;
use no43_machine::agent::{Agent, ExecLimits, ExecOutput};
use std::time::Duration;

/// For all work of one card: each piece has a limit of its own in the guest, and the memory test has three minutes.
const WORK_LIMIT: Duration = Duration::from_secs(900);

/// A guest behind its agent.
pub(crate) struct LiveGuest<'a> {
    agent: Agent,
    /// Absent for a machine that is not ours: then only its agent tells whether it lives.
    machine: Option<&'a Machine>,
    /// For one run of our program.
    limit: Duration,
    boot_id: Option<String>,
    /// Where our program is; asked once.
    program: Option<String>,
}

impl<'a> LiveGuest<'a> {
    pub(crate) fn new(machine: &'a Machine, limit: Duration) -> Self {
        let agent = machine.agent();
        hang_bell(&agent, machine.dirs());
        Self { agent, machine: Some(machine), limit, boot_id: None, program: None }
    }

    /// A guest that somebody else runs, or a scripted one.
    pub(crate) fn of_agent(agent: Agent, limit: Duration) -> Self {
        Self { agent, machine: None, limit, boot_id: None, program: None }
    }

    /// Our program is there, and not where our images have it.
    pub(crate) fn with_program(self, path: &str) -> Self {
        Self { program: Some(path.to_owned()), ..self }
    }

    fn ask(&mut self, arguments: &[&str]) -> Result<Vec<u8>> {
        let program = self.program();
        let mut argv = vec![program.as_str()];
        argv.extend_from_slice(arguments);
        let output = self
            .agent
            .exec(&argv, &ExecLimits::within(self.limit))
            .with_context(|| format!("failed to run '{}' in the guest", argv.join(" ")))?;
        finished(&argv, output)
    }
}

/// Standard output of a program that ended well; otherwise its own words as the error.
fn finished(argv: &[&str], output: ExecOutput) -> Result<Vec<u8>> {
    if output.success() && output.stdout.len() <= MESSAGE_LIMIT {
        return Ok(output.stdout);
    }
    let how = match (output.code, output.signal) {
        (Some(0), _) => format!("wrote {} bytes, more than {MESSAGE_LIMIT}", output.stdout.len()),
        (Some(code), _) => format!("ended with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".into(),
    };
    let words = words::clean_to(&output.stderr_text(), 600);
    bail!(
        "'{}' in the guest {how}{}",
        argv.join(" "),
        if words.is_empty() { String::new() } else { format!(": {words}") }
    )
}

impl Guest for LiveGuest<'_> {
    fn report(&mut self) -> Result<Report> {
        let report = parse_report(&self.ask(&["report", "--json"])?)?;
        self.boot_id.clone_from(&report.boot_id);
        Ok(report)
    }

    fn paint(&mut self, card: &str, seed: u64) -> Result<Painted> {
        Ok(parse_painted(&self.ask(&["paint", "--card", card, "--seed", &seed.to_string()])?)?)
    }

    fn unpaint(&mut self) -> Result<()> {
        self.ask(&["unpaint"]).map(drop)
    }

    fn work(&mut self, card: &str, only: &[&str]) -> Result<WorkReport> {
        let program = self.program();
        let mut argv = vec![program.as_str(), "work", "--json", "--adapter", card];
        argv.extend(only.iter().flat_map(|name| ["--only", name]));
        if only.contains(&DESKTOP) {
            argv.extend(["--out", DESKTOP_FOLDER]);
        }
        let limits = ExecLimits::within(WORK_LIMIT.max(self.limit));
        let output =
            self.agent.exec(&argv, &limits).context("failed to run 'no43-guest work' in the guest")?;
        // work that failed ends with another code and tells what failed all the same
        match parse_work(&output.stdout) {
            Ok(report) if !output.stdout.is_empty() => Ok(report),
            _ => finished(&argv, output).and_then(|bytes| Ok(parse_work(&bytes)?)),
        }
    }

    fn run(&mut self, argv: &[String], limit: Duration) -> Result<Ran> {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let output = self.agent.exec(&argv, &ExecLimits::within(limit))?;
        let mut text =
            String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(MESSAGE_LIMIT)]).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(MESSAGE_LIMIT)]));
        Ok(Ran { code: output.code, output: text })
    }

    fn program(&mut self) -> String {
        let agent = &self.agent;
        let usual = || guest_program(agent.is_windows().unwrap_or(false)).to_owned();
        self.program.get_or_insert_with(usual).clone()
    }

    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.agent.write_file(path, bytes).with_context(|| format!("failed to write {path} in the guest"))
    }

    fn fetch(&mut self, path: &str, max: u64) -> Result<Vec<u8>> {
        self.agent.read_file(path, max).with_context(|| format!("failed to read {path} in the guest"))
    }

    fn gone(&mut self) -> Option<String> {
        let exit = self.machine?.exit()?;
        Some(exit_words(&exit))
    }

    fn last_boot_id(&self) -> Option<String> {
        self.boot_id.clone()
    }
}

/// Why something in the guest is not waited for any longer, if it is not.
pub(super) type Over<'a> = dyn Fn() -> Option<String> + 'a;

/// The machine has ended, or the run is to stop.
pub(super) fn over<'a>(machine: &'a Machine, stop: &'a Stop) -> impl Fn() -> Option<String> + 'a {
    move || match machine.exit() {
        Some(exit) => Some(format!("the machine ended meanwhile: {}", exit_words(&exit))),
        None => stop.is_set().then(|| "stopped as asked".to_owned()),
    }
}

/// How QEMU ended, in one sentence.
pub(crate) fn exit_words(exit: &no43_machine::Exit) -> String {
    let reason = exit.reason.as_deref().unwrap_or("it gave no reason");
    let words = words::clean_to(&exit.stderr, 600);
    format!(
        "QEMU ended ({:?}, {reason}){}",
        exit.status,
        if words.is_empty() { String::new() } else { format!(": {words}") }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::scripted;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_a_picture_of_the_desktop_is_told_where_to_go() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let (_dir, socket) = scripted::agent(move |command, arguments| match command {
            "guest-get-osinfo" => json!({"id": "mswindows"}),
            "guest-exec" => {
                log.lock().unwrap().push(scripted::command(arguments).join(" "));
                json!({"pid": 7})
            }
            "guest-exec-status" => scripted::ended(1, r#"{"version": 1, "results": []}"#),
            _ => json!({}),
        });
        let mut guest = LiveGuest::of_agent(Agent::on_socket(socket), Duration::from_secs(20));
        guest.work("0000:01:00.0", &["cuda-copy", DESKTOP]).unwrap();
        guest.work("0000:01:00.0", &["cuda-copy"]).unwrap();
        insta::assert_snapshot!(told.lock().unwrap().join("\n"), @r"
        C:\Program Files\no43\no43-guest.exe work --json --adapter 0000:01:00.0 --only cuda-copy --only desktop-picture --out C:\Windows\Temp
        C:\Program Files\no43\no43-guest.exe work --json --adapter 0000:01:00.0 --only cuda-copy
        ");
    }
}
