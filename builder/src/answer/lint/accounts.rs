//! Who exists, who is logged on, and what the computer is called.

use std::collections::HashMap;

use super::super::finding::{Finding, shown};
use super::super::password::{self, NotHidden};
use super::super::read::Element;
use super::structure::placeholder;
use super::{Component, File, truth};
use crate::recipe::{computer_name_fault, user_name_fault};

/// The built-in administrator; autologon may use it without its being listed.
const ADMINISTRATOR: &str = "administrator";

fn accounts<'d>(component: Component<'d>) -> impl Iterator<Item = Element<'d>> {
    component.element.path("UserAccounts/LocalAccounts").into_iter().flat_map(|list| list.all("LocalAccount"))
}

/// Names of computers and users.
pub(super) fn names(file: &File<'_>, findings: &mut Vec<Finding>) {
    let mut users: Vec<String> = Vec::new();
    for shell in file.of("Shell-Setup") {
        let mut here: HashMap<String, usize> = HashMap::new();
        for account in accounts(shell) {
            let Some(name) = account.child("Name").filter(|name| !name.text().is_empty()) else {
                findings.push(
                    Finding::error(account.at(), "account", "an account without a name").fix("add Name"),
                );
                continue;
            };
            user_name(name, findings);
            if let Some(line) = here.insert(name.text().to_lowercase(), name.at().line) {
                let what = format!("the user '{}' is already in line {line}", shown(name.text()));
                findings.push(Finding::error(name.at(), "account-twice", what).fix("keep one of them"));
            }
        }
        users.extend(here.into_keys());
    }
    for name in file.of("Shell-Setup").filter_map(|shell| shell.element.child("ComputerName")) {
        computer_name(name, &users, findings);
    }
}

fn user_name(name: Element<'_>, findings: &mut Vec<Finding>) {
    let text = name.text();
    if placeholder(text) {
        return;
    }
    if text.eq_ignore_ascii_case(ADMINISTRATOR) {
        let what = "the built-in Administrator is not made, it is given a password";
        findings
            .push(Finding::warning(name.at(), "account", what).fix("use UserAccounts/AdministratorPassword"));
    } else if let Some(what) = user_name_fault(text) {
        findings.push(Finding::error(name.at(), "account-name", what).fix("take another name"));
    }
}

fn computer_name(name: Element<'_>, users: &[String], findings: &mut Vec<Finding>) {
    let text = name.text();
    // "*" makes Windows take a random one.
    if text.is_empty() || text == "*" || placeholder(text) {
        return;
    }
    if let Some(what) = computer_name_fault(text) {
        let odd = text.contains('_') && text.chars().count() <= 15;
        let finding = if odd { Finding::warning } else { Finding::error };
        let finding = finding(name.at(), "computer-name", what);
        findings.push(
            finding.fix("use letters, digits and '-', at most 15, not only digits; or * for a random name"),
        );
    } else if users.contains(&text.to_lowercase()) {
        let finding =
            Finding::error(name.at(), "computer-name", "the computer is called like one of its users");
        findings.push(finding.fix("take another name for one of them"));
    }
}

/// Every password: how it is written, and that a hidden one is one.
pub(super) fn passwords(file: &File<'_>, findings: &mut Vec<Finding>) {
    let mut readable = None;
    for shell in file.of("Shell-Setup") {
        let administrator = shell.element.path("UserAccounts/AdministratorPassword");
        let autologon = shell.element.path("AutoLogon/Password");
        let local = accounts(shell).filter_map(|account| account.child("Password"));
        for element in administrator.into_iter().chain(autologon).chain(local) {
            if let Some(finding) = hidden_fault(element) {
                findings.push(finding);
            }
            let value = element.text_at("Value").filter(|value| !value.is_empty() && !placeholder(value));
            if plain(element) == Some(true) && value.is_some() {
                readable = readable.or(Some(element.at()));
            }
        }
    }
    if let Some(at) = readable {
        findings.push(
            Finding::note(at, "password-readable", "a password that everybody with this file can read")
                .why("Windows blanks its own copy; the file on the medium stays as it is")
                .fix("use a password for the installation only, and change it afterwards"),
        );
    }
}

/// Windows takes a password without PlainText for a plain one.
fn plain(password: Element<'_>) -> Option<bool> {
    match password.text_at("PlainText") {
        None | Some("") => Some(true),
        Some(text) => truth(text),
    }
}

fn hidden_fault(element: Element<'_>) -> Option<Finding> {
    let value = element.text_at("Value").filter(|value| !value.is_empty() && !placeholder(value))?;
    if plain(element) != Some(false) {
        return None;
    }
    let why = match password::decode(value, element.name()).err()? {
        NotHidden::Base64 => "it is no base64".to_owned(),
        NotHidden::Utf16 => "inside is no UTF-16".to_owned(),
        NotHidden::Suffix => format!("inside, the word {} does not follow it", element.name()),
    };
    Some(
        Finding::error(element.at(), "password-hidden", "PlainText is false, and this is no hidden password")
            .why(format!("{why}; Windows takes another password out of it than is meant"))
            .fix(format!(
                "write base64 of UTF-16LE of the password with '{}' behind it, or PlainText = true",
                element.name()
            )),
    )
}

/// A password as it would be typed; `None` where it cannot be told.
fn password(element: Element<'_>) -> Option<String> {
    let value = element.child("Value")?;
    match plain(element)? {
        true => Some(value.raw_text().to_owned()),
        false => password::decode(value.text(), element.name()).ok(),
    }
}

/// The user who is logged on must exist, with that password.
pub(super) fn autologon(file: &File<'_>, findings: &mut Vec<Finding>) {
    let all: Vec<Element<'_>> = file.of("Shell-Setup").flat_map(accounts).collect();
    let administrator =
        file.of("Shell-Setup").find_map(|shell| shell.element.path("UserAccounts/AdministratorPassword"));
    for logon in file.of("Shell-Setup").filter_map(|shell| shell.element.child("AutoLogon")) {
        if logon.text_at("Enabled").and_then(truth) != Some(true) {
            continue;
        }
        let Some(name) = logon.text_at("Username").filter(|name| !name.is_empty()) else {
            findings.push(
                Finding::error(logon.at(), "autologon", "autologon without a user").fix("add Username"),
            );
            continue;
        };
        let domain = logon.text_at("Domain").is_some_and(|domain| !domain.is_empty() && domain != ".");
        if domain || placeholder(name) {
            continue;
        }
        let is_user = |account: &&Element<'_>| {
            account.text_at("Name").is_some_and(|known| known.to_lowercase() == name.to_lowercase())
        };
        let account = all.iter().find(is_user);
        let theirs = match account {
            Some(account) => account.child("Password"),
            None if name.eq_ignore_ascii_case(ADMINISTRATOR) => administrator,
            None => {
                let what =
                    format!("autologon wants the user '{}', whom this file does not make", shown(name));
                let finding = Finding::warning(logon.at(), "autologon", what);
                findings.push(
                    finding
                        .fix("add the user to UserAccounts/LocalAccounts, unless the image already has it"),
                );
                continue;
            }
        };
        let (theirs, here) = (theirs.and_then(password), logon.child("Password").and_then(password));
        if let (Some(theirs), Some(here)) = (theirs, here)
            && theirs != here
        {
            let what = format!("autologon of '{}' has another password than the account", shown(name));
            findings.push(
                Finding::error(logon.at(), "autologon", what)
                    .why("Windows then waits at the sign-in screen")
                    .fix("write the same password in both places"),
            );
        }
        count(logon, findings);
    }
}

fn count(logon: Element<'_>, findings: &mut Vec<Finding>) {
    let Some(count) = logon.child("LogonCount") else { return };
    if count.text() == "0" {
        let finding = Finding::warning(count.at(), "autologon", "autologon is enabled for 0 times");
        findings.push(finding.fix("write how many times, or leave LogonCount out for always"));
    }
}
