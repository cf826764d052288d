//! The running guest as the checks ask it: `no43-guest` through the guest agent.

use crate::checks::Guest;
use crate::words;
use anyhow::{Context as _, Result, bail};
use no43_guest::protocol::{MESSAGE_LIMIT, Painted, Report, parse_painted, parse_report};
use no43_guest::setup::WINDOWS_PROGRAM;
use no43_machine::Machine;
use no43_machine::agent::{ExecLimits, ExecOutput};
use std::time::Duration;

/// Our program in a Linux guest; the agent looks it up in its `PATH`.
const PROGRAM: &str = "no43-guest";

/// A guest inside a machine.
pub(crate) struct LiveGuest<'a> {
    machine: &'a Machine,
    /// For one run of our program.
    limit: Duration,
    boot_id: Option<String>,
    /// Where our program is; asked once.
    program: Option<&'static str>,
}

impl<'a> LiveGuest<'a> {
    pub(crate) fn new(machine: &'a Machine, limit: Duration) -> Self {
        Self { machine, limit, boot_id: None, program: None }
    }

    fn ask(&mut self, arguments: &[&str]) -> Result<Vec<u8>> {
        let program = *self.program.get_or_insert_with(|| {
            let os = self.machine.agent().os_info().ok().and_then(|os| os.id);
            if os.as_deref() == Some("mswindows") { WINDOWS_PROGRAM } else { PROGRAM }
        });
        let mut argv = vec![program];
        argv.extend_from_slice(arguments);
        let output = self
            .machine
            .agent()
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

    fn gone(&mut self) -> Option<String> {
        let exit = self.machine.exit()?;
        Some(exit_words(&exit))
    }

    fn last_boot_id(&self) -> Option<String> {
        self.boot_id.clone()
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
