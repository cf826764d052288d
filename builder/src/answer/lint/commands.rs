//! Commands: their lengths, their number, and letters that are nobody's promise.

use super::super::finding::Finding;
use super::super::read::Element;
use super::File;

/// Microsoft: the longest path of a driver, and of a RunSynchronous command.
const PATH_LIMIT: usize = 259;
/// Said of FirstLogonCommands by several projects; not verified.
const LINE_LIMIT: usize = 1024;

/// Every command and driver path.
pub(super) fn commands(file: &File<'_>, findings: &mut Vec<Finding>) {
    for component in file.of("Setup").chain(file.of("Deployment")) {
        for list in ["RunSynchronous", "RunAsynchronous"] {
            for command in items(component.element, list) {
                match command.child("Path").filter(|path| !path.text().is_empty()) {
                    Some(path) => length(path, PATH_LIMIT, true, findings),
                    None => empty(command, "Path", findings),
                }
                if component.pass == "windowsPE" {
                    command.child("Path").into_iter().for_each(|path| letter(path, findings));
                }
            }
        }
    }
    for component in file.of("PnpCustomizationsWinPE").chain(file.of("PnpCustomizationsNonWinPE")) {
        for entry in items(component.element, "DriverPaths") {
            if let Some(path) = entry.child("Path") {
                length(path, PATH_LIMIT, true, findings);
            }
            if entry.attribute("wcm:keyValue").is_none() {
                let finding =
                    Finding::warning(entry.at(), "key-value", "<PathAndCredentials> has no wcm:keyValue");
                findings.push(
                    finding
                        .why("entries with the same key replace each other")
                        .fix("add wcm:keyValue=\"1\", \"2\", …"),
                );
            }
        }
    }
    for shell in file.of("Shell-Setup") {
        let first: Vec<Element<'_>> = items(shell.element, "FirstLogonCommands").collect();
        for command in first.iter().copied().chain(items(shell.element, "LogonCommands")) {
            match command.child("CommandLine").filter(|line| !line.text().is_empty()) {
                Some(line) => length(line, LINE_LIMIT, false, findings),
                None => empty(command, "CommandLine", findings),
            }
        }
        if let [_, second, ..] = first[..] {
            findings.push(
                Finding::note(
                    second.at(),
                    "first-logon-several",
                    format!("{} commands at the first logon", first.len()),
                )
                .why("since Windows 10 1511 the next may start before the one before it has ended")
                .fix("start one program that does the rest in order"),
            );
        }
    }
}

fn items<'d>(component: Element<'d>, list: &str) -> impl Iterator<Item = Element<'d>> {
    component.child(list).into_iter().flat_map(Element::children)
}

fn empty(command: Element<'_>, name: &str, findings: &mut Vec<Finding>) {
    let what = format!("<{}> without {name}", command.name());
    findings.push(
        Finding::error(command.at(), "command", what).fix(format!("add {name}, or remove the command")),
    );
}

/// Counted as Windows counts: in UTF-16.
fn length(line: Element<'_>, limit: usize, sure: bool, findings: &mut Vec<Finding>) {
    let length = line.text().encode_utf16().count();
    if length > limit {
        let what = format!("<{}> has {length} characters, and {limit} are the most", line.name());
        let finding = if sure { Finding::error } else { Finding::warning };
        findings.push(finding(line.at(), "length", what).fix("put the rest into a program and start that"));
    }
}

/// A letter of a disk or CD in WinPE depends on what else is attached.
fn letter(path: Element<'_>, findings: &mut Vec<Finding>) {
    let text = path.text().to_ascii_uppercase();
    let bytes = text.as_bytes();
    let fixed = bytes.windows(3).enumerate().find(|(at, window)| {
        let alone = *at == 0 || !bytes[at - 1].is_ascii_alphanumeric() && bytes[at - 1] != b'%';
        // C is the new system, X is WinPE itself.
        alone
            && window[1] == b':'
            && window[2] == b'\\'
            && window[0].is_ascii_uppercase()
            && !b"CX".contains(&window[0])
    });
    if let Some((_, window)) = fixed {
        let what = format!("the drive {}: is taken for granted", char::from(window[0]));
        findings.push(
            Finding::note(path.at(), "drive-letter-fixed", what)
                .why("letters of disks and CDs depend on what else is attached")
                .fix("look for a file of yours on all letters"),
        );
    }
}
