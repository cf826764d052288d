//! Checks of one's own (`[[check]]`): files in, a command, and what it must end with, as a case like any other.

use super::{Answer, Asking, Subject};
use crate::evidence::Fact;
use crate::words;
use anyhow::{Context as _, Result, bail};
use no43_builder::plan::{OwnCheck, Session};
use no43_guest::own_check::{CheckEnd, CheckOrder, HAND_OVER_SECONDS};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most that one check may carry into a guest: the agent moves a few MB a second.
const COPY_LIMIT: u64 = 256 << 20;
/// Most files of one check.
const FILES_LIMIT: usize = 2000;
/// The file of metrics.
const METRICS_LIMIT: u64 = 64 << 10;
/// Most numbers out of it.
const METRICS_COUNT: usize = 64;
/// A picture that comes out.
pub(super) const PICTURE_LIMIT: u64 = 16 << 20;
/// Widest and highest picture.
const PICTURE_SIDE: u32 = 8192;
/// What our program in a Windows guest is told, beside the check's own files.
const ORDER: &str = "no43-check.json";
/// For the helpers around the command.
const HELPER: Duration = Duration::from_secs(60);
/// Lines of output that a report shows.
const LINES: usize = 20;

/// How a command in the guest ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Exit code; none if a signal ended it.
    pub code: Option<i64>,
    /// What it wrote, both streams, cut.
    pub output: String,
}

/// Asks one such check; `card` where it is asked for each card.
pub(super) fn ask(check: &OwnCheck, asking: &mut Asking<'_, '_>, card: Option<&Subject>) -> Answer {
    let says = check.says.as_ref().map(|text| format!(" and says '{text}'")).unwrap_or_default();
    let expected = format!(
        "'{}' ends with {} within {}{says}",
        check.run.join(" "),
        check.exit,
        words::limit(Duration::from_secs(check.limit))
    );
    match carry_out(check, asking, card) {
        Ok(ran) => judge(check, asking, &ran, expected),
        Err(error) => Answer::broken(expected, format!("{error:#}")),
    }
}

fn carry_out(check: &OwnCheck, asking: &mut Asking<'_, '_>, card: Option<&Subject>) -> Result<Ran> {
    let windows = asking.last.as_ref().is_some_and(crate::diagnosis::is_windows);
    let folder = match windows {
        true => format!("C:\\no43-check\\{}", check.name),
        false => format!("/run/no43-check/{}", check.name),
    };
    make_folder(asking, &folder, windows)?;
    copy_in(check, asking, &folder, windows)?;
    if windows {
        return in_windows(check, asking, folder, card);
    }
    let argv = command(check, asking, &folder, card);
    asking.guest.run(&argv, Duration::from_secs(check.limit))
}

fn make_folder(asking: &mut Asking<'_, '_>, folder: &str, windows: bool) -> Result<()> {
    let argv = match windows {
        true => vec!["cmd.exe", "/c", "if", "not", "exist", folder, "mkdir", folder],
        false => vec!["mkdir", "-p", folder],
    };
    let ran = asking.guest.run(&argv.into_iter().map(str::to_owned).collect::<Vec<_>>(), HELPER)?;
    if ran.code != Some(0) {
        bail!("failed to make {folder} in the guest: {}", words::clean_to(&ran.output, 300));
    }
    Ok(())
}

fn copy_in(check: &OwnCheck, asking: &mut Asking<'_, '_>, folder: &str, windows: bool) -> Result<()> {
    let mut files = Vec::new();
    for path in &check.copy {
        list(
            path,
            Path::new(path.file_name().context("a file or folder is copied by its name")?),
            &mut files,
        )?;
    }
    let mut left = COPY_LIMIT;
    let mut made = std::collections::BTreeSet::new();
    for (from, to) in files {
        let size =
            std::fs::metadata(&from).with_context(|| format!("failed to read {}", from.display()))?.len();
        left = left.checked_sub(size).with_context(|| {
            format!(
                "its files have more than {}; put large ones on a share or into the image",
                words::bytes(COPY_LIMIT)
            )
        })?;
        let separator = if windows { "\\" } else { "/" };
        let parts: Vec<String> = to.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let parent = [&[folder.to_owned()], &parts[..parts.len() - 1]].concat().join(separator);
        if parent != folder && made.insert(parent.clone()) {
            make_folder(asking, &parent, windows)?;
        }
        let bytes = std::fs::read(&from).with_context(|| format!("failed to read {}", from.display()))?;
        let there = format!("{parent}{separator}{}", parts.last().context("a file has a name")?);
        asking.guest.put(&there, &bytes)?;
        if !windows && is_executable(&from) {
            asking.guest.run(&["chmod".into(), "755".into(), there], HELPER)?;
        }
    }
    Ok(())
}

/// Every file below a path, with where it goes; links are followed no further than files.
fn list(path: &Path, to: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    let kind = std::fs::metadata(path).with_context(|| format!("failed to read {}", path.display()))?;
    if !kind.is_dir() {
        if files.len() >= FILES_LIMIT {
            bail!("more than {FILES_LIMIT} files; pack them, or put them into the image");
        }
        files.push((path.to_owned(), to.to_owned()));
        return Ok(());
    }
    let mut entries: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries
        .into_iter()
        .filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_symlink() && entry.path().is_dir()))
    {
        list(&entry.path(), &to.join(entry.file_name()), files)?;
    }
    Ok(())
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
}

/// Our own program runs it there: the agent knows neither a folder, nor a variable beside its own, nor anybody's session.
fn in_windows(
    check: &OwnCheck,
    asking: &mut Asking<'_, '_>,
    folder: String,
    card: Option<&Subject>,
) -> Result<Ran> {
    let as_user = check.session == Session::User;
    let file = format!("{folder}\\{ORDER}");
    let card = card.map(|card| card.video().guest.to_string());
    let order = CheckOrder { run: check.run.clone(), folder, card, as_user, limit_seconds: check.limit };
    asking.guest.put(&file, &serde_json::to_vec(&order)?)?;
    let argv = [asking.guest.program(), "check".to_owned(), file];
    let beyond = if as_user { Duration::from_secs(HAND_OVER_SECONDS) } else { HELPER };
    let ran = asking.guest.run(&argv, Duration::from_secs(check.limit) + beyond)?;
    let said = |text: &str| {
        let last = text.lines().last().map(|line| words::clean_to(line, 300)).unwrap_or_default();
        if last.is_empty() { last } else { format!(": {last}") }
    };
    let limit = words::limit(Duration::from_secs(check.limit));
    match CheckEnd::parse(ran.output.as_bytes()).filter(|_| ran.code == Some(0)) {
        Some((CheckEnd::Ended(code), output)) => {
            Ok(Ran { code: Some(code), output: String::from_utf8_lossy(output).into_owned() })
        }
        Some((CheckEnd::Overdue, output)) => {
            bail!("it did not end within {limit}{}", said(&String::from_utf8_lossy(output)))
        }
        Some((CheckEnd::NotRun(why), _)) => bail!("it was not run: {}", words::clean_to(&why, 300)),
        None => bail!("the guest program could not run it{}", said(&ran.output)),
    }
}

/// The command as a Linux guest runs it: in its folder, and told which card it is about.
fn command(check: &OwnCheck, asking: &Asking<'_, '_>, folder: &str, card: Option<&Subject>) -> Vec<String> {
    let mut argv: Vec<String> = Vec::new();
    if let (Session::User, Some(user)) = (check.session, &asking.user) {
        argv.extend(["runuser", "-u", user, "--"].map(str::to_owned));
    }
    argv.extend(["env".to_owned(), "-C".to_owned(), folder.to_owned()]);
    if let Some(card) = card {
        argv.push(format!("NO43_CARD={}", card.video().guest));
    }
    argv.extend(check.run.iter().cloned());
    argv
}

fn judge(check: &OwnCheck, asking: &mut Asking<'_, '_>, ran: &Ran, expected: String) -> Answer {
    let output: Vec<String> = ran.output.lines().map(|line| words::clean_to(line, 300)).collect();
    let shown = output[output.len().saturating_sub(LINES)..].to_vec();
    let last = shown.last().map(|line| format!(": {line}")).unwrap_or_default();
    let (metrics, no_metrics) = match &check.metrics {
        Some(path) => match asking.guest.fetch(path, METRICS_LIMIT).and_then(|bytes| numbers(&bytes)) {
            Ok(metrics) => (metrics, None),
            Err(error) => (Vec::new(), Some(format!("no metrics in {path}: {error:#}"))),
        },
        None => (Vec::new(), None),
    };
    let pictures = pictures(check, asking);
    let answer = match ran.code {
        Some(code) if code != check.exit => Answer::broken(expected, format!("it ended with {code}{last}")),
        None => Answer::broken(expected, format!("it was ended by a signal{last}")),
        Some(_) => match (&check.says, &no_metrics) {
            (Some(text), _) if !ran.output.contains(text) => {
                Answer::broken(expected, format!("it did not say '{text}'{last}"))
            }
            (_, Some(problem)) => Answer::broken(expected, problem),
            (_, None) => {
                let numbers: Vec<String> =
                    metrics.iter().take(4).map(|m| format!("{} {}", m.name, m.value)).collect();
                let seen = if numbers.is_empty() {
                    format!("it ended with {}", check.exit)
                } else {
                    numbers.join(", ")
                };
                Answer::holds(expected, seen)
            }
        },
    };
    let (kept, problems): (Vec<_>, Vec<_>) = pictures.into_iter().partition(Result::is_ok);
    let problems = problems.into_iter().filter_map(Result::err);
    let mut answer = answer.details(shown.into_iter().chain(problems));
    answer.evidence = kept.into_iter().filter_map(Result::ok).collect();
    answer.metrics = metrics;
    answer
}

fn pictures(check: &OwnCheck, asking: &mut Asking<'_, '_>) -> Vec<Result<String, String>> {
    let mut all = Vec::new();
    for path in check.pictures.iter().take(16) {
        let picture = asking.guest.fetch(path, PICTURE_LIMIT).and_then(|bytes| decode(&bytes));
        let kept = picture.map_err(|error| format!("no picture {path}: {error:#}")).and_then(|picture| {
            let caption = format!("{} of check '{}'", words::clean(path), check.name);
            let file = asking.recorder.frame(&format!("check {}", check.name), &caption, &picture);
            file.ok_or_else(|| format!("picture {path} could not be kept"))
        });
        all.push(kept);
    }
    all
}

/// Foreign bytes become a picture here and nothing else: what is kept is written anew.
pub(super) fn decode(bytes: &[u8]) -> Result<image::RgbImage> {
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), image::ImageFormat::Png);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(PICTURE_SIDE);
    limits.max_image_height = Some(PICTURE_SIDE);
    limits.max_alloc = Some(256 << 20);
    reader.limits(limits);
    Ok(reader.decode().context("it is no PNG that can be read")?.to_rgb8())
}

/// The numbers of a JSON object; those of objects in it are called `outer.inner`.
fn numbers(bytes: &[u8]) -> Result<Vec<Fact>> {
    let value: Value = serde_json::from_slice(bytes).context("it is no JSON")?;
    let mut all = Vec::new();
    collect(&value, "", &mut all);
    if all.is_empty() {
        bail!("it holds no number");
    }
    Ok(all)
}

fn collect(value: &Value, name: &str, all: &mut Vec<Fact>) {
    match value {
        Value::Number(number) if all.len() < METRICS_COUNT => {
            all.push(Fact::new(
                words::clean_to(if name.is_empty() { "value" } else { name }, 80),
                number.to_string(),
            ));
        }
        Value::Object(map) => {
            for (key, value) in map {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                collect(value, &name, all);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A check that runs a program of its own name, and nothing else.
    pub(crate) fn own_check(name: &str, session: Session) -> OwnCheck {
        OwnCheck {
            name: name.into(),
            copy: Vec::new(),
            run: vec![name.into()],
            session,
            limit: 60,
            exit: 0,
            says: None,
            metrics: None,
            pictures: Vec::new(),
            each_card: false,
        }
    }

    #[test]
    fn numbers_come_out_of_json_and_nothing_else_does() {
        let all = numbers(br#"{"fps": 59.9, "gpu": {"load": 98}, "name": "x", "list": [1, 2]}"#).unwrap();
        let all: Vec<String> = all.iter().map(|m| format!("{}={}", m.name, m.value)).collect();
        assert_eq!(all, ["fps=59.9", "gpu.load=98"]);
        assert!(numbers(b"{}").is_err() && numbers(b"59.9 fps").is_err());
        let many = format!("{{{}}}", (0..500).map(|n| format!("\"m{n}\":{n}")).collect::<Vec<_>>().join(","));
        assert_eq!(numbers(many.as_bytes()).unwrap().len(), METRICS_COUNT);
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = numbers(&bytes);
            let _ = decode(&bytes);
        }
    }
}
