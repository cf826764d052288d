//! Work that needs the desktop of the person who is logged on: the guest agent runs in the session of services, which has none. It is
//! handed over as a task of Windows' own scheduler, which runs in that person's session, without a password, and once.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Leaves an answer in a file, for whom handed this process over and waits for it, or on standard output, which a
/// scheduled task does not have.
pub(crate) fn leave(answer: &[u8], file: Option<&Path>) -> Result<()> {
    if let Some(file) = file {
        // whoever waits for it sees it whole
        let begun = file.with_extension("begun");
        return std::fs::write(&begun, answer)
            .and_then(|()| std::fs::rename(&begun, file))
            .with_context(|| format!("failed to write {}", file.display()));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(answer)?;
    Ok(out.flush()?)
}

/// The task's definition (Microsoft, "Task Scheduler Schema"): for `user`, on request only, with a limit of its own.
#[cfg(any(windows, test))]
pub(crate) fn definition(user: &str, program: &str, arguments: &[String], limit_seconds: u64) -> String {
    let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    let (user, program, words) = (escaped(user), escaped(program), escaped(&words.join(" ")));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-16\"?>\r\n\
         <Task version=\"1.2\" xmlns=\"http://schemas.microsoft.com/windows/2004/02/mit/task\">\r\n\
         <Principals><Principal id=\"Author\"><UserId>{user}</UserId><LogonType>InteractiveToken</LogonType>\
         <RunLevel>LeastPrivilege</RunLevel></Principal></Principals>\r\n\
         <Settings><AllowStartOnDemand>true</AllowStartOnDemand><DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>\
         <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries><ExecutionTimeLimit>PT{limit_seconds}S</ExecutionTimeLimit></Settings>\r\n\
         <Actions Context=\"Author\"><Exec><Command>{program}</Command><Arguments>{words}</Arguments></Exec></Actions>\r\n\
         </Task>\r\n"
    )
}

/// A word of a command line, as Windows' own programs take it apart. None of ours ends with a backslash or holds a quote.
#[cfg(any(windows, test))]
fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains(char::is_whitespace);
    if plain { word.to_owned() } else { format!("\"{word}\"") }
}

#[cfg(any(windows, test))]
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The file's bytes, in the encoding that its first line says.
#[cfg(any(windows, test))]
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[cfg(windows)]
pub(crate) use windows::{NoAnswer, is_needed, run};

#[cfg(windows)]
mod windows {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use no43_guest::own_check::LOG_ON_SECONDS;
    use no43_guest::setup::WINDOWS_STATE;

    use super::{definition, utf16};
    use crate::windows::api::session;

    /// For one call of the scheduler.
    const CALL_LIMIT: Duration = Duration::from_secs(30);
    /// Between two looks for the answer.
    const LOOK: Duration = Duration::from_millis(200);
    /// Most bytes of an answer: what a check wrote, and some words.
    const ANSWER_LIMIT: u64 = 5 << 20;

    /// Why there is no answer.
    pub(crate) enum NoAnswer {
        /// Nobody is logged on.
        Nobody,
        /// A step failed; it is named.
        Failed(String),
        /// The limit is over.
        Overdue,
    }

    impl NoAnswer {
        /// In words, after so long.
        pub(crate) fn text(self, limit: Duration) -> String {
            match self {
                Self::Nobody => "nobody is logged on at this guest's console".into(),
                Self::Failed(reason) => {
                    format!("it could not be handed over to the logged-on user: {reason}")
                }
                Self::Overdue => {
                    format!("the logged-on user's session gave no answer within {} s", limit.as_secs())
                }
            }
        }
    }

    /// Whether this process has no desktop that anybody sees.
    pub(crate) fn is_needed() -> bool {
        session::is_services()
    }

    /// Lets this program run with `arguments`, the first its command, in the session of whoever is logged on; gives its answer,
    /// which it leaves in a file (`--answer`). `out` takes the pictures that it leaves.
    pub(crate) fn run(
        mut arguments: Vec<String>,
        limit: Duration,
        out: Option<&Path>,
    ) -> Result<Vec<u8>, NoAnswer> {
        let user = whoever_is_logged_on().ok_or(NoAnswer::Nobody)?;
        let task = format!("no43-hand-over-{}", std::process::id());
        let folder = PathBuf::from(WINDOWS_STATE).join(&task);
        let failed = |what: &str, error: std::io::Error| NoAnswer::Failed(format!("{what}: {error}"));
        let program = std::env::current_exe().map_err(|error| failed("this program's own file", error))?;
        std::fs::create_dir_all(&folder).map_err(|error| failed("failed to make a folder for it", error))?;
        let answer = folder.join("answer.json");
        arguments.extend(["--answer".to_owned(), answer.display().to_string()]);
        if out.is_some() {
            arguments.extend(["--out".to_owned(), folder.display().to_string()]);
        }
        let xml = definition(&user, &program.display().to_string(), &arguments, limit.as_secs());
        let file = folder.join("task.xml");
        let result = std::fs::write(&file, utf16(&xml))
            .map_err(|error| failed("failed to write the task", error))
            .and_then(|()| scheduled(&task, &file, &answer, limit));
        if let (Ok(_), Some(out)) = (&result, out) {
            let pictures = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            for picture in pictures.filter(|entry| entry.path().extension().is_some_and(|end| end == "png")) {
                let _ = std::fs::copy(picture.path(), out.join(picture.file_name()));
            }
        }
        let _ = std::fs::remove_dir_all(&folder);
        result
    }

    fn whoever_is_logged_on() -> Option<String> {
        let until = Instant::now() + Duration::from_secs(LOG_ON_SECONDS);
        loop {
            let user = session::console_user();
            if user.is_some() || Instant::now() >= until {
                return user;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn scheduled(task: &str, file: &Path, answer: &Path, limit: Duration) -> Result<Vec<u8>, NoAnswer> {
        let file = file.display().to_string();
        schtasks(&["/create", "/tn", task, "/xml", &file, "/f"])?;
        let result = schtasks(&["/run", "/tn", task]).and_then(|()| wait(answer, limit));
        if matches!(result, Err(NoAnswer::Overdue)) {
            let _ = schtasks(&["/end", "/tn", task]);
        }
        let _ = schtasks(&["/delete", "/tn", task, "/f"]);
        result
    }

    /// The answer's file comes whole: it is renamed to its name.
    fn wait(answer: &Path, limit: Duration) -> Result<Vec<u8>, NoAnswer> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if std::fs::metadata(answer).is_ok_and(|file| file.len() <= ANSWER_LIMIT) {
                return std::fs::read(answer)
                    .map_err(|error| NoAnswer::Failed(format!("its answer: {error}")));
            }
            std::thread::sleep(LOOK);
        }
        Err(NoAnswer::Overdue)
    }

    /// Its words are translated; only its exit code tells.
    fn schtasks(words: &[&str]) -> Result<(), NoAnswer> {
        let what = words.first().copied().unwrap_or_default();
        let failed = |why: String| NoAnswer::Failed(format!("schtasks {what}: {why}"));
        let mut command = Command::new("schtasks.exe");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let began = Instant::now();
        loop {
            match child.try_wait().map_err(|error| failed(error.to_string()))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(failed(format!("it ended with {status}"))),
                None if began.elapsed() > CALL_LIMIT => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("no end within {} s", CALL_LIMIT.as_secs())));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml;

    #[test]
    fn a_task_runs_once_in_the_session_of_its_user_without_a_password() {
        let words =
            ["work-item", "desktop-picture", "--answer", r"C:\Program Data\a<b>.json"].map(str::to_owned);
        let text = definition(r"PC-1\Élodie & co", r"C:\Program Files\no43\no43-guest.exe", &words, 60);
        let task = xml::parse(&text).unwrap();
        assert_eq!(task.attribute("version"), Some("1.2"));
        assert_eq!(task.text_at("Principals/Principal/UserId"), Some(r"PC-1\Élodie & co"));
        assert_eq!(task.text_at("Principals/Principal/LogonType"), Some("InteractiveToken"));
        assert_eq!(task.text_at("Settings/ExecutionTimeLimit"), Some("PT60S"));
        assert_eq!(task.text_at("Actions/Exec/Command"), Some(r"C:\Program Files\no43\no43-guest.exe"));
        let words = task.text_at("Actions/Exec/Arguments").unwrap();
        assert_eq!(words, r#"work-item desktop-picture --answer "C:\Program Data\a<b>.json""#);
        assert!(task.at("Triggers").is_none() && !text.contains("Password"));
        assert_eq!(utf16("<é")[..], [0xff, 0xfe, b'<', 0, 0xe9, 0]);
    }
}
