//! A kept run as one file that can be handed to strangers: facts, checks, causes, times and chosen pictures; nobody's names in it.
//!
//! Logs stay at home: what a kernel says about a card is in the facts already. Every text that is left passes through [`scrub`].

use super::model::{Model, SectionModel};
use crate::evidence::read::Run;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::Path;

/// A picture beyond this is left out.
const MAX_PICTURE: u64 = 4 << 20;
/// Most pictures.
const MAX_PICTURES: usize = 12;
/// A name shorter than this would hit too many innocent words.
const SHORTEST_NAME: usize = 3;

/// What is handed in.
#[derive(Debug, Clone)]
pub struct HandIn {
    /// Everything but the pictures' contents: what a person is shown.
    pub shown: Value,
    /// Names and bytes of the pictures that go in.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// Who must not be in it, beside what can be recognised by its form.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<(String, &'static str)>);

impl Names {
    /// Names of this host and of the person who asks.
    pub fn here() -> Self {
        let mut names = Self::default();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        names.add(host.trim(), "<host>");
        for variable in ["USER", "LOGNAME", "SUDO_USER"] {
            names.add(&std::env::var(variable).unwrap_or_default(), "<user>");
        }
        names
    }

    /// One more; what is too short, or a word of this program, is no name.
    pub fn add(&mut self, name: &str, instead: &'static str) {
        let common = [
            "root",
            "localhost",
            "no43",
            "debian",
            "windows",
            "linux",
            "guest",
            "host",
            "user",
            "lab",
            "name",
            "recipe",
        ];
        if name.len() >= SHORTEST_NAME && !common.contains(&name.to_lowercase().as_str()) {
            self.0.push((name.to_lowercase(), instead));
        }
    }
}

/// Makes the bundle of a run. `more_frames` are pictures that a person wants in it beside those of checks that failed.
///
/// # Errors
/// When the folder is no run's, or a picture that was asked for is not there.
pub fn anonymise(run_folder: &Path, names: &Names, frames: bool, more_frames: &[String]) -> Result<HandIn> {
    let run = Run::open(run_folder)?;
    let model = Model::of(&run);
    let mut names = names.clone();
    names.add(&model.recipe, "<recipe>");
    let mut pictures = Vec::new();
    let chosen = if frames { chosen(&model.main, more_frames)? } else { Vec::new() };
    for file in chosen.into_iter().take(MAX_PICTURES) {
        let mut bytes = Vec::new();
        let path = run_folder.join(&file);
        let picture =
            std::fs::File::open(&path).with_context(|| format!("failed to read {}", path.display()))?;
        picture.take(MAX_PICTURE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= MAX_PICTURE {
            pictures.push((file, bytes));
        }
    }
    let mut shown = json!({
        "format": "no43-hand-in",
        "v": 1,
        "no43": model.no43,
        "day": model.started.split('T').next(),
        "took_ms": model.took_ms,
        "headline": model.headline,
        "exit_code": model.exit_code,
        "answer": model.answer,
        "main": section(&model.main),
        "control": model.control.as_ref().map(section),
        "pictures": pictures.iter().map(|(file, bytes)| json!({"file": file, "bytes": bytes.len()})).collect::<Vec<_>>(),
    });
    scrub_value(&mut shown, &names);
    Ok(HandIn { shown, pictures })
}

impl HandIn {
    /// The file: what was shown, with the pictures' contents.
    pub fn file(&self) -> Vec<u8> {
        let mut whole = self.shown.clone();
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        whole["pictures"] =
            self.pictures.iter().map(|(file, bytes)| json!({"file": file, "png": encode(bytes)})).collect();
        let mut text = serde_json::to_vec(&whole).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// Facts of the machine that may be told; what else a run knows stays at home.
const TOLD: &[&str] = &["machine", "guest", "image"];

fn section(section: &SectionModel) -> Value {
    let facts: Vec<_> =
        section.facts.iter().filter(|(subject, _)| TOLD.contains(&subject.as_str())).collect();
    let phases = section.phases.iter().map(|p| {
        json!({"name": p.name, "from_ms": p.from_ms, "took_ms": p.took_ms, "limit_ms": p.limit_ms, "problem": p.problem})
    });
    json!({
        "cards": section.cards,
        "facts": facts,
        "checks": section.checks,
        "phases": phases.collect::<Vec<_>>(),
        "notes": section.notes,
        "causes": section.causes,
        "observed": section.observed,
        "control": section.control,
    })
}

/// Pictures of the card's own output that a failed check shows, and those that were asked for. A guest's desktop only if asked for.
fn chosen(section: &SectionModel, more: &[String]) -> Result<Vec<String>> {
    let of_card = |file: &&String| {
        section
            .frames
            .iter()
            .any(|f| f.file == **file && (f.source.starts_with("card ") || f.source.starts_with("expected ")))
    };
    let failed = section.checks.iter().filter(|check| check.failed()).flat_map(|check| &check.evidence);
    let mut files: Vec<String> = failed.filter(of_card).cloned().collect();
    for file in more {
        if !section.frames.iter().any(|frame| frame.file == *file) {
            let there: Vec<&str> = section.frames.iter().map(|frame| frame.file.as_str()).collect();
            bail!("the run has no picture '{file}'; there are: {}", there.join(", "));
        }
        files.push(file.clone());
    }
    // a name from an event file that somebody edited must not lead out of the run's folder
    files.retain(|file| {
        file.strip_prefix("frames/").is_some_and(|name| !name.contains('/') && !name.starts_with('.'))
    });
    files.dedup();
    Ok(files)
}

fn scrub_value(value: &mut Value, names: &Names) {
    match value {
        Value::String(text) => *text = scrub(text, names),
        Value::Array(list) => list.iter_mut().for_each(|value| scrub_value(value, names)),
        Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut value) in old {
                scrub_value(&mut value, names);
                map.insert(scrub(&key, names), value);
            }
        }
        _ => {}
    }
}

/// Replaces whatever names a person, a machine or a place, word by word.
pub fn scrub(text: &str, names: &Names) -> String {
    let mut out = String::new();
    let mut secret_next = 0;
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if !is_edge(c) {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            let lower = word.to_lowercase();
            let clean = if secret_next > 0 { "<serial>".to_owned() } else { scrub_word(&word, names) };
            secret_next = match lower.trim_end_matches([':', '#']) {
                "serial" | "s/n" | "serialnumber" | "serial_number" | "password" | "passwd" | "token" => 2,
                "number" | "no" | "no." | "is"
                    if secret_next == 0 && out.to_lowercase().ends_with("serial ") =>
                {
                    2
                }
                _ => 0,
            };
            out.push_str(&clean);
            word.clear();
        }
        out.push(c);
    }
    out.pop(); // the line end that was added
    out
}

fn is_edge(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '"' | '\'' | '(' | ')' | '<' | '>' | '[' | ']' | '{' | '}' | ',' | ';' | '=' | '|')
}

/// Whether a word has a form by which it is known.
type Fits = fn(&str) -> bool;

fn scrub_word(word: &str, names: &Names) -> String {
    let core = word.trim_matches(|c: char| matches!(c, '.' | ':' | '!' | '?'));
    let replaced = |with: &str| word.replacen(core, with, 1);
    if core.is_empty() {
        return word.to_owned();
    }
    let forms: [(Fits, &str); 6] = [
        (is_uuid, "<uuid>"),
        (is_mac, "<mac>"),
        (is_ip, "<address>"),
        (is_product_key, "<key>"),
        (is_mail, "<mail>"),
        (is_long_secret, "<hash>"),
    ];
    if let Some((_, with)) = forms.iter().find(|(fits, _)| fits(core)) {
        return replaced(with);
    }
    let mut text = without_homes(&without_instance(word));
    for (name, instead) in &names.0 {
        while let Some(at) = find_whole(&text, name) {
            text.replace_range(at..at + name.len(), instead);
        }
    }
    text
}

/// Where a name stands by itself and not inside of another word.
fn find_whole(text: &str, name: &str) -> Option<usize> {
    let lower = text.to_ascii_lowercase();
    if lower.len() != text.len() {
        return None;
    }
    let alone = |at: usize| {
        let before = lower[..at].chars().next_back();
        let after = lower[at + name.len()..].chars().next();
        let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !inside(before) && !inside(after)
    };
    lower.match_indices(name).map(|(at, _)| at).find(|at| alone(*at))
}

fn hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_uuid(word: &str) -> bool {
    let word = word.trim_start_matches("GPU-").trim_start_matches("MIG-");
    let parts: Vec<&str> = word.split('-').collect();
    parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| hex(part))
}

fn is_mac(word: &str) -> bool {
    [':', '-'].iter().any(|by| {
        let parts: Vec<&str> = word.split(*by).collect();
        parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && hex(part))
    })
}

/// IPv4 and IPv6, also with a port or a prefix length.
fn is_ip(word: &str) -> bool {
    let host = word.split('/').next().unwrap_or(word);
    let bare = host.rsplit_once(':').map_or(host, |(host, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') {
            host
        } else {
            word.split('/').next().unwrap_or(word)
        }
    });
    bare.parse::<std::net::IpAddr>().is_ok()
        || host.split('%').next().is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_product_key(word: &str) -> bool {
    let parts: Vec<&str> = word.split('-').collect();
    parts.len() == 5
        && parts.iter().all(|part| part.len() == 5 && part.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn is_mail(word: &str) -> bool {
    word.split_once('@').is_some_and(|(who, at)| !who.is_empty() && at.contains('.'))
}

/// Hashes, tokens, keys in base64: long, without a gap, letters mixed with digits.
fn is_long_secret(word: &str) -> bool {
    let plain =
        word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'_' | b'-'));
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    word.len() >= 24 && plain && digits >= 4 && !word.contains("--") && !word.contains('/')
        || word.len() >= 40 && plain && digits >= 6
}

/// `PCI\VEN_…\4&1A2B…` without what is special to one machine.
fn without_instance(word: &str) -> String {
    let parts: Vec<&str> = word.split('\\').collect();
    let is_device = parts.len() == 3 && ["PCI", "HDAUDIO", "USB"].contains(&parts[0]);
    if is_device { format!("{}\\{}\\<instance>", parts[0], parts[1]) } else { word.to_owned() }
}

/// `/home/anna/x` becomes `/home/<user>/x`.
fn without_homes(word: &str) -> String {
    for (home, by) in [("/home/", '/'), ("/Users/", '/'), ("/run/user/", '/'), ("\\Users\\", '\\')] {
        if let Some(at) = word.find(home) {
            let after = &word[at + home.len()..];
            let rest = after.find(by).map_or("", |end| &after[end..]);
            return format!("{}{home}<user>{rest}", &word[..at]);
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Facts;
    use crate::evidence::{CheckResult, Event, Fact, Outcome, Recorder, Round, RunDir};
    use crate::verdict::{FailureKind, Verdict};

    /// What must not get out, each in the kind of sentence in which it stands.
    const SECRETS: &[&str] = &[
        "52:54:00:12:34:56",
        "192.168.178.23",
        "fe80::5054:ff:fe12:3456",
        "GPU-5c8b2f3a-1d2e-4f5a-9b8c-7d6e5f4a3b2c",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "0324718069251",
        "S4EVNX0R912345",
        "VK7JG-NPHTM-C97JM-9MPGT-3V66T",
        "anna.schmidt@example.org",
        "annas-tower",
        "anna",
        "4&1A2B3C4D&0&0008",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "hunter2secret",
    ];

    fn sentences() -> Vec<String> {
        vec![
            "net0 has 52:54:00:12:34:56 and 192.168.178.23/24, fe80::5054:ff:fe12:3456".into(),
            "uuid: GPU-5c8b2f3a-1d2e-4f5a-9b8c-7d6e5f4a3b2c (6ba7b810-9dad-11d1-80b4-00c04fd430c8)".into(),
            "board serial: 0324718069251, disk Serial S4EVNX0R912345".into(),
            "key VK7JG-NPHTM-C97JM-9MPGT-3V66T of anna.schmidt@example.org".into(),
            "/home/anna/games and C:\\Users\\anna\\x on Annas-Tower:5900".into(),
            "PCI\\VEN_10DE&DEV_2484&SUBSYS_146B10DE\\4&1A2B3C4D&0&0008 started".into(),
            "key 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
            "password=hunter2secret".into(),
        ]
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.add("annas-tower", "<host>");
        names.add("anna", "<user>");
        names
    }

    #[test]
    fn no_name_address_serial_or_key_is_in_the_bundle() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = |_: &crate::evidence::Record| {};
        let mut recorder = Recorder::new(RunDir::create(root.path(), "anna-games").unwrap(), &mut sink);
        let mut facts = Facts::default();
        for sentence in sentences() {
            facts.add("guest.says", &sentence);
            recorder.note(&sentence, true);
            let all = vec![Fact::new("x", &sentence)];
            for subject in ["guest", "host"] {
                recorder.event(Event::Facts { subject: subject.into(), facts: all.clone() });
            }
            recorder.check(CheckResult {
                expected: sentence.clone(),
                seen: sentence.clone(),
                details: vec![sentence.clone()],
                guest_lines: vec![sentence.clone()],
                metrics: all,
                ..failed("quiet")
            });
        }
        recorder.event(Event::Observed { facts });
        let folder = recorder.finish(&Verdict::failed(FailureKind::Guest, sentences().join(" "))).unwrap();
        let bundle = anonymise(&folder, &names(), true, &[]).unwrap();
        let text = String::from_utf8(bundle.file()).unwrap().to_lowercase();
        for secret in SECRETS {
            assert!(!text.contains(&secret.to_lowercase()), "{secret} is in the bundle:\n{}", bundle.shown);
        }
        // what the project needs is still there
        for kept in ["ven_10de&dev_2484", "quiet", "01:00"] {
            assert!(text.contains(kept), "{kept} was lost");
        }
    }

    #[test]
    fn neither_a_dump_nor_a_desktop_goes_out_unasked() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = |_: &crate::evidence::Record| {};
        let mut recorder = Recorder::new(RunDir::create(root.path(), "games").unwrap(), &mut sink);
        let desktop = recorder.frame("desktop", "the desktop", &image::RgbImage::new(4, 3)).unwrap();
        let memory = b"PAGEDU64 hunter2 in the guest's memory";
        std::fs::create_dir(recorder.dir().join("dumps")).unwrap();
        std::fs::write(recorder.dir().join("dumps/112326.dmp"), memory).unwrap();
        let stop = "stop code 0x116 (0x1, 0x2, 0x3, 0x4)".to_owned();
        recorder.event(Event::DumpKept { file: "dumps/112326.dmp".into(), bytes: memory.len() as u64, stop });
        recorder.check(CheckResult { evidence: vec![desktop.clone()], ..failed("work") });
        let folder = recorder.finish(&Verdict::failed(FailureKind::Guest, "Windows stopped")).unwrap();
        let unasked = anonymise(&folder, &names(), true, &[]).unwrap();
        assert!(unasked.pictures.is_empty(), "{:?}", unasked.shown["pictures"]);
        let text = String::from_utf8(unasked.file()).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("112326.dmp"), "{text}");
        let asked = anonymise(&folder, &names(), true, std::slice::from_ref(&desktop)).unwrap();
        assert_eq!(asked.pictures[0].0, desktop);
        assert!(anonymise(&folder, &names(), true, &["dumps/112326.dmp".into()]).is_err());
    }

    fn failed(check: &str) -> CheckResult {
        CheckResult {
            check: check.into(),
            layer: check.into(),
            card: "01:00".into(),
            round: Round::First,
            answer: Outcome::Failed,
            expected: String::new(),
            seen: String::new(),
            details: Vec::new(),
            guest_lines: Vec::new(),
            evidence: Vec::new(),
            metrics: Vec::new(),
            took_ms: 1,
        }
    }

    #[test]
    fn what_names_nobody_stays() {
        for text in [
            "vfio-pci 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal)",
            "10de:2484 + 10de:228b, BAR0 16 MiB, driver 27.21.14.6611, build 10.0.19045.5011",
            "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', GPU has fallen off the bus.",
            "problem code 43 (CM_PROB_FAILED_POST_START)",
            "nouveau 0000:01:00.0: unknown chipset (00000000)",
        ] {
            assert_eq!(scrub(text, &names()), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_scrubbed(text in "\\PC{0,80}") {
            let _ = scrub(&text, &names());
        }
    }
}
