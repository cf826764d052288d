//! Passes, components, their attributes; names, kinds and order numbers of settings.

use std::collections::{BTreeSet, HashSet};

use super::super::finding::{Finding, shown};
use super::super::read::{Element, NAMESPACE};
use super::super::tables::{self, Setting};
use super::{Component, File, meant, pass_name, passes, truth};

const TOKEN: &str = "31bf3856ad364e35";
const ARCHITECTURES: &[&str] = &["amd64", "x86", "arm64", "wow64", "arm"];
const ACTIONS: &[&str] = &["add", "modify", "remove", "list"];

/// Root and passes; `None` where the file is something else altogether.
pub(super) fn file<'d>(root: Element<'d>, findings: &mut Vec<Finding>) -> Option<File<'d>> {
    if root.name() != "unattend" {
        let what =
            format!("the root element is <{}>, and an answer file's is <unattend>", shown(root.name()));
        findings.push(Finding::error(root.at(), "root", what));
        return None;
    }
    if root.space() != NAMESPACE {
        let what = if root.space().is_empty() {
            "the namespace is missing".to_owned()
        } else {
            format!("'{}' is not the namespace of answer files", shown(root.space()))
        };
        findings.push(
            Finding::error(root.at(), "root", what)
                .why("Setup takes no setting out of another namespace")
                .fix(format!("write <unattend xmlns=\"{NAMESPACE}\" …>")),
        );
        if !root.space().is_empty() {
            return None;
        }
    }
    let mut components = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for child in root.children() {
        if child.name() != "settings" {
            // `servicing` is legal, and other programs leave notes of their own.
            if let Some(fix) =
                meant(child.name(), ["settings", "servicing"]).filter(|_| child.name() != "servicing")
            {
                let what = format!("Setup knows no <{}> here", shown(child.name()));
                findings.push(Finding::error(child.at(), "spelling", what).fix(fix));
            }
            continue;
        }
        if let Some(pass) = pass(child, &mut seen, findings) {
            components.extend(components_of(child, pass, findings));
        }
    }
    Some(File { components })
}

fn pass<'d>(settings: Element<'d>, seen: &mut Vec<&'d str>, findings: &mut Vec<Finding>) -> Option<&'d str> {
    let Some(written) = settings.attribute("pass") else {
        let finding = Finding::error(settings.at(), "pass", "<settings> does not say its pass");
        findings.push(finding.fix("add pass=\"windowsPE\", \"specialize\" or \"oobeSystem\""));
        return None;
    };
    let Some(pass) = pass_name(written) else {
        let fix = meant(written, tables::PASSES);
        let fix = fix.unwrap_or_else(|| format!("use one of: {}", passes(&tables::PASSES)));
        let what = format!("there is no pass '{}'", shown(written));
        findings.push(Finding::error(settings.at(), "pass", what).fix(fix));
        return None;
    };
    if seen.contains(&pass) {
        let what = format!("the pass '{pass}' is in this file twice");
        findings.push(
            Finding::note(settings.at(), "pass-twice", what)
                .why("Windows' own tools write each pass once")
                .fix("put its components together"),
        );
    }
    if !seen.contains(&pass) {
        seen.push(pass);
    }
    stray(settings, findings);
    Some(pass)
}

fn components_of<'d>(
    settings: Element<'d>,
    pass: &'d str,
    findings: &mut Vec<Finding>,
) -> Vec<Component<'d>> {
    let mut found = Vec::new();
    for element in settings.children() {
        if element.name() != "component" {
            let what = format!("a pass holds <component>, not <{}>", shown(element.name()));
            findings.push(Finding::error(element.at(), "spelling", what).fix("put it into a component"));
            continue;
        }
        let Some(written) = element.attribute("name") else {
            let finding = Finding::error(element.at(), "component-name", "a component without a name");
            findings.push(finding.fix("add name=\"Microsoft-Windows-…\""));
            continue;
        };
        let name = tables::component(written).map_or(written, |(name, _)| name);
        stray(element, findings);
        found.push(Component { pass, name, element });
    }
    found
}

/// A text where only elements belong.
fn stray(element: Element<'_>, findings: &mut Vec<Finding>) {
    if !element.text().is_empty() {
        let what = format!("a text outside of the settings: '{}'", shown(element.text()));
        findings
            .push(Finding::warning(element.at(), "stray-text", what).fix("make it a comment, or remove it"));
    }
}

/// Names, passes and attributes of components.
pub(super) fn components(file: &File<'_>, findings: &mut Vec<Finding>) {
    let mut seen = HashSet::new();
    for component in &file.components {
        component_name(component, findings);
        attributes(component, findings);
        let architecture = component.element.attribute("processorArchitecture");
        if !seen.insert((component.pass, component.name, architecture)) {
            let what = format!("{} is in the pass '{}' twice", component.name, component.pass);
            findings.push(
                Finding::warning(component.element.at(), "component-twice", what)
                    .why("which of the two counts is nobody's promise")
                    .fix("put their settings together"),
            );
        }
    }
}

fn component_name(component: &Component<'_>, findings: &mut Vec<Finding>) {
    let Component { pass, name, element } = *component;
    let at = element.at();
    let Some((_, legal)) = tables::component(name) else {
        if tables::is_old_component(name) {
            return;
        }
        let what = format!("'{}' is in no list of components", shown(name));
        findings.push(match meant(name, tables::component_names()) {
            Some(fix) => Finding::error(at, "component-name", what).fix(fix),
            None => Finding::note(at, "component-name", what).why("another release of Windows may have it"),
        });
        return;
    };
    if legal.contains(&pass) {
        return;
    }
    // What only WinPE reads is what Setup would ask for; of the rest, widely used files show that it does no harm.
    let severe = legal == ["windowsPE"];
    let what = format!("{name} does not belong into the pass '{pass}'");
    let finding = if severe {
        Finding::error(at, "component-pass", what)
    } else {
        Finding::warning(at, "component-pass", what)
    };
    findings
        .push(finding.why("its settings do not count there").fix(format!("move it to {}", passes(&legal))));
}

fn attributes(component: &Component<'_>, findings: &mut Vec<Finding>) {
    let element = component.element;
    let mut wrong = |what: String, fix: String| {
        let finding = Finding::error(element.at(), "component-attribute", what);
        findings.push(
            finding
                .why("a component is found by these attributes; another value names another component")
                .fix(fix),
        );
    };
    match element.attribute("processorArchitecture") {
        Some(known) if ARCHITECTURES.iter().any(|name| name.eq_ignore_ascii_case(known)) => {}
        Some(template) if placeholder(template) => {}
        Some(other) => {
            let fix = meant(&other.to_ascii_lowercase(), ARCHITECTURES.iter().copied());
            let what = format!("there is no architecture '{}'", shown(other));
            wrong(what, fix.unwrap_or_else(|| "write amd64 for 64-bit Intel and AMD".to_owned()));
        }
        None => wrong(
            "processorArchitecture is missing".to_owned(),
            "add processorArchitecture=\"amd64\"".to_owned(),
        ),
    }
    for (name, value) in [("publicKeyToken", TOKEN), ("language", "neutral"), ("versionScope", "nonSxS")] {
        match element.attribute(name) {
            Some(written) if written.eq_ignore_ascii_case(value) => {}
            // Driver packages bring components of their own.
            Some(_) if name != "versionScope" && tables::component(component.name).is_none() => {}
            Some(written) => {
                wrong(format!("{name} is '{}'", shown(written)), format!("write {name}=\"{value}\""));
            }
            None => wrong(format!("{name} is missing"), format!("add {name}=\"{value}\"")),
        }
    }
}

/// Spelling, kind and pass of every setting of the components in the table.
pub(super) fn settings(file: &File<'_>, findings: &mut Vec<Finding>) {
    for component in &file.components {
        if tables::settings_of(component.name).next().is_some() {
            walk(component, component.element, "", findings);
        }
    }
}

fn walk(component: &Component<'_>, parent: Element<'_>, above: &str, findings: &mut Vec<Finding>) {
    let mut seen = HashSet::new();
    for child in parent.children() {
        let path =
            if above.is_empty() { child.name().to_owned() } else { format!("{above}/{}", child.name()) };
        let Some(setting) = tables::setting(component.name, &path) else {
            findings.extend(unknown(component, child, above));
            continue;
        };
        if !seen.insert(child.name()) && !setting.is_item() {
            let what = format!("<{}> is here twice", child.name());
            findings.push(Finding::error(child.at(), "setting-twice", what).fix("keep one of them"));
        }
        look_at(component, child, setting, findings);
        if setting.kind != "?" {
            walk(component, child, &path, findings);
        }
    }
}

/// A setting that the table does not have: an error where it is nearly one that Setup knows, or is known elsewhere.
fn unknown(component: &Component<'_>, child: Element<'_>, above: &str) -> Option<Finding> {
    let depth = if above.is_empty() { 0 } else { above.matches('/').count() + 1 };
    let beside = tables::settings_of(component.name).filter(|setting| {
        setting.path.matches('/').count() == depth
            && setting
                .path
                .strip_suffix(setting.last())
                .is_some_and(|head| head.trim_end_matches('/') == above)
    });
    let what = format!("{} has no <{}> here", component.name, shown(child.name()));
    let finding = Finding::error(child.at(), "spelling", what)
        .why("Setup refuses a file with a setting that it does not know");
    if let Some(fix) = meant(child.name(), beside.map(Setting::last)) {
        return Some(finding.fix(fix));
    }
    let elsewhere =
        tables::all_settings().find(|setting| setting.last() == child.name() && !setting.path.contains('/'));
    if above.is_empty()
        && let Some(elsewhere) = elsewhere.filter(|setting| setting.component != component.name)
    {
        return Some(finding.fix(format!("it belongs into {}", elsewhere.component)));
    }
    let what = format!("{} has no <{}> that is known here", component.name, shown(child.name()));
    Some(
        Finding::note(child.at(), "spelling", what)
            .why("a release of Windows that this table does not cover may have it"),
    )
}

fn look_at(component: &Component<'_>, child: Element<'_>, setting: &Setting, findings: &mut Vec<Finding>) {
    let name = child.name();
    if !setting.passes.is_empty() && !setting.passes.contains(&component.pass) {
        let what = format!("<{name}> counts in {}, not in {}", passes(&setting.passes), component.pass);
        findings.push(
            Finding::error(child.at(), "setting-pass", what).fix(format!("move it to {}", setting.passes[0])),
        );
    }
    if !setting.deprecated.is_empty() && truth(child.text()) != Some(false) {
        let what = format!("<{name}>: {}", setting.deprecated);
        let finding =
            if setting.deprecated.starts_with("without") { Finding::note } else { Finding::warning };
        findings.push(finding(child.at(), "deprecated", what).fix("remove it"));
    }
    let text = child.text();
    let bad = |what: String, fix: String| Finding::error(child.at(), "value", what).fix(fix);
    match setting.kind {
        "-" | "*" if !text.is_empty() => {
            findings.push(bad(
                format!("<{name}> holds other settings, and here is a text in it"),
                "remove the text".to_owned(),
            ));
        }
        // An empty element is what Windows' own tools leave behind for "not set".
        _ if text.is_empty() => {}
        "b" if truth(text).is_none() && !placeholder(text) => {
            let what = format!("<{name}> is '{}'", shown(text));
            findings.push(bad(what, "write true or false".to_owned()));
        }
        "n" if text.parse::<u32>().is_err() && !placeholder(text) => {
            findings.push(bad(
                format!("<{name}> is '{}', not a number", shown(text)),
                "write a whole number".to_owned(),
            ));
        }
        words if words.contains('|') && !placeholder(text) && !has_word(words, text) => {
            let fix = meant(text, words.split('|'))
                .unwrap_or_else(|| format!("use one of: {}", words.replace('|', ", ")));
            findings.push(bad(format!("<{name}> is '{}'", shown(text)), fix));
        }
        _ => {}
    }
}

/// Is `text` one of `a|b|c`?
fn has_word(words: &str, text: &str) -> bool {
    words.split('|').any(|word| word.eq_ignore_ascii_case(text))
}

/// Many public files are templates: `${name}`, `{{ name }}`, `%NAME%`, `@name@`, `[NAME]` stand where somebody puts a value in.
pub(super) fn placeholder(text: &str) -> bool {
    let around = [
        ("${", "}"),
        ("{{", "}}"),
        ("%", "%"),
        ("@", "@"),
        ("[", "]"),
        ("<", ">"),
        ("__", "__"),
        ("$(", ")"),
    ];
    around
        .iter()
        .any(|(open, close)| text.find(open).is_some_and(|at| text[at + open.len()..].contains(close)))
        || text.starts_with('$')
}

/// Lists: `wcm:action`, and order numbers from 1 without gaps.
pub(super) fn lists(file: &File<'_>, findings: &mut Vec<Finding>) {
    for component in &file.components {
        let mut open = vec![(component.element, String::new())];
        while let Some((element, path)) = open.pop() {
            let mut items: Vec<Element<'_>> = Vec::new();
            for child in element.children() {
                let path = if path.is_empty() {
                    child.name().to_owned()
                } else {
                    format!("{path}/{}", child.name())
                };
                if tables::setting(component.name, &path).is_some_and(Setting::is_item) {
                    action(child, findings);
                    items.push(child);
                }
                open.push((child, path));
            }
            orders(&items, findings);
        }
    }
}

fn action(item: Element<'_>, findings: &mut Vec<Finding>) {
    let name = item.name();
    match item.attribute("wcm:action") {
        Some(action) if ACTIONS.contains(&action) => {}
        Some(other) => {
            let what = format!("wcm:action is '{}'", shown(other));
            findings.push(Finding::error(item.at(), "wcm-action", what).fix("write wcm:action=\"add\""));
        }
        None if item.attribute("action").is_some() => {
            let finding =
                Finding::error(item.at(), "wcm-action", format!("<{name}> has an 'action' of no namespace"));
            findings.push(finding.fix("write wcm:action, and declare xmlns:wcm at <unattend>"));
        }
        None => {
            let finding = Finding::warning(item.at(), "wcm-action", format!("<{name}> has no wcm:action"));
            findings.push(
                finding
                    .why("items of a list say whether they are added or changed")
                    .fix("add wcm:action=\"add\""),
            );
        }
    }
}

/// Order numbers of the items of one list.
fn orders(items: &[Element<'_>], findings: &mut Vec<Finding>) {
    let ordered = items.iter().any(|item| item.child("Order").is_some());
    let commands = items.first().is_some_and(|item| item.name().ends_with("Command"));
    if !ordered && !commands {
        return;
    }
    let mut seen = BTreeSet::new();
    for item in items.iter().filter(|item| item.attribute("wcm:action") != Some("remove")) {
        let Some(order) = item.child("Order") else {
            let finding = Finding::error(item.at(), "order", format!("<{}> has no Order", item.name()));
            findings.push(finding.fix("number the items from 1"));
            continue;
        };
        let Ok(number) = order.text().parse::<u32>() else { continue };
        if number == 0 {
            findings
                .push(Finding::error(order.at(), "order", "order numbers count from 1").fix("begin with 1"));
        } else if !seen.insert(number) {
            let what = format!("the Order {number} is given twice");
            findings.push(
                Finding::error(order.at(), "order", what)
                    .why("which of the two comes first, and whether both do, is nobody's promise")
                    .fix("number the items from 1"),
            );
        }
    }
    let gap = (1..).zip(&seen).find(|(expected, number)| expected != *number);
    if let (Some((expected, number)), Some(first)) = (gap, items.first()) {
        let what = format!("the Order goes from {} to {number}", expected - 1);
        findings.push(
            Finding::note(first.at(), "order-gap", what)
                .why("Microsoft counts from 1 without gaps; many public files have gaps, and their order holds")
                .fix("number the items from 1 without gaps"),
        );
    }
}
