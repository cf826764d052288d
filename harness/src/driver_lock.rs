//! Keeping the card's driver in a running Windows as it is, and letting it change again: Windows' own policy against other drivers,
//! set and lifted by the guest program.
//!
//! The policy is set only where a driver is at work: Windows would refuse the first driver as well. [`keep()`] does both by itself at
//! each start of a guest whose recipe asks for it.

mod keep;

use std::time::Duration;

use no43_builder::driver::{Version, updates};
use no43_guest::protocol::{DriverInstall, GuestFunction, Report, parse_report};
use no43_guest::setup::{SetupPlan, WINDOWS_PROGRAM, WINDOWS_STATE};
use no43_host::PciId;
use no43_machine::agent::{Agent, ExecLimits};
use serde::Serialize;

use crate::checks::holds_only;
use crate::words::clean;

pub use keep::{BIND_LIMIT, keep};

/// A report, or 130 values of the registry, on a busy machine without KVM.
const LIMIT: Duration = Duration::from_secs(180);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Cards whose driver is kept; empty where any may come.
    pub kept: Vec<String>,
    /// The cards in the guest with their drivers.
    pub cards: Vec<CardDriver>,
}

/// A card in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CardDriver {
    /// Its id.
    pub id: String,
    /// The driver's version as people say it; `None`: none has bound.
    pub version: Option<String>,
    /// Problem code, if it is not 0.
    pub problem: Option<u32>,
    /// How it came there, by Windows' own log.
    pub came: Option<String>,
}

/// No other driver is installed for the guest's cards, and for `also`: ids of further cards that the recipe may lease.
///
/// # Errors
/// A sentence: no Windows, no driver at work, the guest's own words.
pub fn lock(agent: &Agent, also: &[String]) -> Result<Done, String> {
    let cards = look(agent)?;
    if cards.is_empty() {
        return Err("the guest sees no card whose driver could be kept".to_owned());
    }
    if let Some(why) = without(&cards) {
        return Err(format!("{why}: Windows would then be told to refuse its driver, too"));
    }
    let ids = ids(&cards, also);
    carry_out(agent, &updates::lock(&ids), "driver-lock")?;
    Ok(Done { kept: ids.iter().map(ToString::to_string).collect(), cards })
}

/// Any driver is installed again.
///
/// # Errors
/// As [`lock()`].
pub fn unlock(agent: &Agent) -> Result<Done, String> {
    let cards = look(agent)?;
    carry_out(agent, &updates::unlock(), "driver-lock")?;
    Ok(Done { kept: Vec::new(), cards })
}

/// What keeps the list from being set: a card that has no driver, or one that Windows complains about.
fn without(cards: &[CardDriver]) -> Option<String> {
    let card = cards.iter().find(|card| card.version.is_none() || card.problem.is_some())?;
    Some(match card.problem {
        Some(problem) => format!("{} has problem code {problem}", card.id),
        None => format!("{} has no driver yet", card.id),
    })
}

/// Whom the list names.
fn ids(cards: &[CardDriver], also: &[String]) -> Vec<PciId> {
    let all = cards.iter().map(|card| &card.id).chain(also);
    let mut ids: Vec<PciId> = all.filter_map(|id| id.parse().ok()).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The guest's cards and their drivers.
fn look(agent: &Agent) -> Result<Vec<CardDriver>, String> {
    let os = agent.os_info().map_err(|error| error.to_string())?;
    if os.id.as_deref() != Some("mswindows") {
        return Err("only Windows replaces drivers by itself; this guest is none".to_owned());
    }
    Ok(cards(&report(agent)?))
}

fn report(agent: &Agent) -> Result<Report, String> {
    let output = exec(agent, &[WINDOWS_PROGRAM, "report", "--json"])?;
    parse_report(&output).map_err(|error| format!("the guest program's report: {error}"))
}

fn cards(report: &Report) -> Vec<CardDriver> {
    let display = |function: &&GuestFunction| {
        let nvidia = function.id.as_ref().is_some_and(|id| id.starts_with("10de:"));
        nvidia && function.class.as_ref().is_some_and(|class| class.starts_with("03"))
    };
    let functions = report.functions.iter().filter(display);
    functions
        .map(|function| CardDriver {
            id: clean(function.id.as_deref().unwrap_or_default()),
            // Windows' own display driver holds a card that has none
            version: match function.driver.as_deref() {
                Some(driver) if holds_only(driver) => None,
                _ => function.driver_version.as_deref().map(version),
            },
            problem: function.node.as_ref().and_then(|node| node.problem).filter(|problem| *problem != 0),
            came: came(function, &report.driver_installs),
        })
        .collect()
}

fn version(text: &str) -> String {
    Version::from_driver_ver(text).map_or_else(|| clean(text), |version| version.to_string())
}

/// The last installation that Windows logged for this card, in words.
fn came(function: &GuestFunction, installs: &[DriverInstall]) -> Option<String> {
    let instance = function.node.as_ref().map(|node| node.instance.to_ascii_uppercase())?;
    let last = installs.iter().rev().find(|install| install.device.to_ascii_uppercase() == instance)?;
    let inf = last.original_inf.as_deref().or(last.inf.as_deref())?;
    let version = last.version.as_deref().map(|text| format!(" {}", version(text))).unwrap_or_default();
    let time = last.started.as_deref().map(|time| format!(", {time}")).unwrap_or_default();
    let from_update =
        last.from.as_deref().is_some_and(|from| from.to_ascii_lowercase().contains("softwaredistribution"));
    let by = if from_update { ", from Windows Update" } else { "" };
    Some(clean(&format!("{inf}{version}{by}{time}")))
}

/// By a plan of registry values: each is read back by the guest program.
fn carry_out(agent: &Agent, plan: &SetupPlan, name: &str) -> Result<(), String> {
    let (file, state) = (format!(r"{WINDOWS_STATE}\{name}.json"), format!(r"{WINDOWS_STATE}\{name}"));
    // The state of an earlier plan would be gone on with.
    let forget =
        agent.exec(&["cmd.exe", "/d", "/c", &format!("rmdir /s /q {state}")], &ExecLimits::within(LIMIT));
    forget.map_err(|error| error.to_string())?;
    agent
        .write_file(&file, plan.to_json().as_bytes())
        .map_err(|error| format!("failed to write {file}: {error}"))?;
    exec(agent, &[WINDOWS_PROGRAM, "setup", "--plan", &file, "--state", &state]).map(drop)
}

fn exec(agent: &Agent, argv: &[&str]) -> Result<Vec<u8>, String> {
    let output = agent.exec(argv, &ExecLimits::within(LIMIT)).map_err(|error| error.to_string())?;
    if output.success() {
        return Ok(output.stdout);
    }
    let said = format!("{}{}", output.stdout_text(), output.stderr_text());
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word");
    let code = output.code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
    Err(format!("the guest program ended with {code}: {}", clean(last.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::protocol::DevNode;

    #[test]
    fn a_card_says_which_driver_it_has_and_how_it_came() {
        let instance = r"PCI\VEN_10DE&DEV_2484&SUBSYS_146B10DE&REV_A1\4&1&0&0008";
        let card = GuestFunction {
            id: Some("10de:2484".into()),
            class: Some("030000".into()),
            driver_version: Some("27.21.14.6172".into()),
            node: Some(DevNode { instance: instance.into(), problem: Some(43), ..DevNode::default() }),
            ..GuestFunction::default()
        };
        let install = |from: &str, version: &str| DriverInstall {
            device: instance.to_lowercase(),
            started: Some("2026/11/22 23:59:01.123".into()),
            original_inf: Some("nv_dispi.inf".into()),
            from: Some(from.into()),
            version: Some(version.into()),
            ..DriverInstall::default()
        };
        let installs = vec![
            install(r"c:\windows\system32\driverstore\x\nv_dispi.inf", "27.21.14.6611"),
            install(r"C:\Windows\SoftwareDistribution\Download\x\nv_dispi.inf", "27.21.14.6172"),
        ];
        let audio = GuestFunction { class: Some("040300".into()), ..card.clone() };
        let report = Report { functions: vec![card, audio], driver_installs: installs, ..Report::default() };
        let expected = CardDriver {
            id: "10de:2484".into(),
            version: Some("461.72".into()),
            problem: Some(43),
            came: Some("nv_dispi.inf 461.72, from Windows Update, 2026/11/22 23:59:01.123".into()),
        };
        assert_eq!(cards(&report), [expected]);
    }
}
