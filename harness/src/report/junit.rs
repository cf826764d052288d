//! JUnit for GitLab, Jenkins and GitHub actions: the dialect that all three read.
//!
//! GitLab shows the *classname* as the suite and drops cases whose classname and name repeat; `[[ATTACHMENT|path]]` in system-out shows pictures.

use super::model::{Model, SectionModel};
use crate::evidence::{CheckResult, Outcome};
use crate::verdict::{FailureKind, Verdict};
use crate::words;
use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::path::Path;
use std::time::Duration;

/// The whole report as XML.
pub(super) fn render(model: &Model, folder: &Path) -> Result<String> {
    let class = format!("no43.{}", model.recipe);
    let mut suite = TestSuite::new(&class);
    suite.set_time(Duration::from_millis(model.took_ms));
    suite.add_property(("run", model.run.as_str()));
    suite.add_property(("no43", model.no43.as_str()));
    suite.add_property(("started", model.started.as_str()));
    for result in &model.main.checks {
        suite.add_test_case(case(&model.main, result, &class, folder));
    }
    if let Some(control) = &model.control {
        suite.add_test_case(control_case(control, &class, folder));
    }
    suite.add_test_case(run_case(model, &class, folder));
    let mut report = Report::new("no43");
    report.set_time(Duration::from_millis(model.took_ms));
    report.add_test_suite(suite);
    report.to_string().context("failed to write junit.xml")
}

fn case(section: &SectionModel, result: &CheckResult, class: &str, folder: &Path) -> TestCase {
    let status = match &result.answer {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Skipped { reason } => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
        Outcome::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(result.seen.as_str()).set_type(result.check.as_str());
            let mut text = format!("expected: {}\nseen:     {}\n", result.expected, result.seen);
            for line in &result.guest_lines {
                text.push_str(&format!("guest:    {line}\n"));
            }
            status.set_description(text);
            status
        }
    };
    let mut case = TestCase::new(section.label(result), status);
    case.set_classname(class).set_time(Duration::from_millis(result.took_ms));
    let mut out = String::new();
    if result.passed() {
        out.push_str(&format!("{}\n", result.seen));
    }
    for line in &result.details {
        out.push_str(&format!("{line}\n"));
    }
    attach(&mut out, &result.evidence, folder);
    case.set_system_out(out);
    case
}

/// The control as one case: that its checks are red is what makes it green.
fn control_case(control: &SectionModel, class: &str, folder: &Path) -> TestCase {
    let ended = control.control.as_ref();
    let status = match ended {
        Some(end) if end.as_it_must => TestCaseStatus::success(),
        end => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status
                .set_message(end.map_or("the control never ended", |e| e.line.as_str()))
                .set_type("control");
            status
        }
    };
    let mut case = TestCase::new("control fails as it must", status);
    case.set_classname(class);
    let mut out = ended.map_or_else(String::new, |end| format!("fails in: {}\n{}\n", end.fails_in, end.line));
    for check in &control.checks {
        out.push_str(&format!("{}: {}\n", check.full_name(), check.seen));
        attach(&mut out, &check.evidence, folder);
    }
    case.set_system_out(out);
    case
}

/// The run as a whole; carries what no check can: a machine that did not start, a host that broke.
fn run_case(model: &Model, class: &str, folder: &Path) -> TestCase {
    let told_by_a_check = model.main.checks.iter().any(CheckResult::failed);
    let status = match &model.answer {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Skipped { reason } => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
        Verdict::Failed { cause, kind } => {
            // a failure is something the guest does wrong; everything else is an error of what stands around it
            let how = if *kind == FailureKind::Guest || told_by_a_check {
                NonSuccessKind::Failure
            } else {
                NonSuccessKind::Error
            };
            let mut status = TestCaseStatus::non_success(how);
            status.set_message(cause.as_str()).set_type(kind.word());
            status
        }
        Verdict::Unstable { reason } => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(reason.as_str()).set_type("unstable");
            status
        }
    };
    let mut case = TestCase::new("run", status);
    case.set_classname(class).set_time(Duration::from_millis(model.took_ms));
    let mut out =
        format!("{} in {}\n", model.headline, words::duration(Duration::from_millis(model.took_ms)));
    for finding in model.main.causes.iter().filter(|f| f.likely) {
        out.push_str(&format!("cause: {}\nfix: {}\n", finding.cause, finding.fix));
    }
    let logs: Vec<String> = model.main.logs.iter().map(|log| log.0.clone()).collect();
    attach(&mut out, &logs, folder);
    attach(&mut out, &["report.html".to_owned()], folder);
    case.set_system_out(out);
    case
}

/// Names files for systems that show them beside the case.
fn attach(out: &mut String, files: &[String], folder: &Path) {
    for file in files {
        out.push_str(&format!("[[ATTACHMENT|{}]]\n", folder.join(file).display()));
    }
}
