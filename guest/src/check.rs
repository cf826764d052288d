//! `no43-guest check`: runs the command of a check of a recipe's own, in its folder, and tells how it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use no43_guest::own_check::{CARD_VARIABLE, CheckEnd, CheckOrder};
use no43_guest::setup::event::Cause;

use crate::executor::process::{Argument, Program};
use crate::hand_over;

/// From the scheduler's word to the command's start, and from its end to the answer.
#[cfg(windows)]
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// `no43-guest check`
#[derive(clap::Args)]
pub(crate) struct Check {
    /// What is to be run (JSON)
    #[arg(value_name = "FILE")]
    order: PathBuf,
    /// Hand it over to the session of whoever is logged on, also from that session
    #[cfg(windows)]
    #[arg(long)]
    hand_over: bool,
    /// A file for the answer: this process was handed over
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(self) -> Result<()> {
        let cannot = || format!("failed to read {}", self.order.display());
        let order: CheckOrder =
            serde_json::from_slice(&fs::read(&self.order).with_context(cannot)?).with_context(cannot)?;
        let answer = match order.as_user && self.answer.is_none() {
            true => self.handed_over(&order),
            false => self.carried_out(&order),
        };
        hand_over::leave(&answer, self.answer.as_deref())
    }

    /// In the session of whoever is logged on, if that is not this one already.
    #[cfg(windows)]
    fn handed_over(&self, order: &CheckOrder) -> Vec<u8> {
        if !self.hand_over && !hand_over::is_needed() {
            return self.carried_out(order);
        }
        let words = vec!["check".to_owned(), self.order.display().to_string()];
        let limit = Duration::from_secs(order.limit_seconds) + STARTS_WITHIN;
        hand_over::run(words, limit, None).unwrap_or_else(|why| CheckEnd::NotRun(why.text(limit)).answer(b""))
    }

    /// Linux has no such sessions.
    #[cfg(not(windows))]
    fn handed_over(&self, order: &CheckOrder) -> Vec<u8> {
        self.carried_out(order)
    }

    /// Here.
    fn carried_out(&self, order: &CheckOrder) -> Vec<u8> {
        let beside = self.answer.as_ref().map(|answer| answer.with_extension("txt"));
        let usual = || std::env::temp_dir().join(format!("no43-check-{}.txt", std::process::id()));
        let output = beside.unwrap_or_else(usual);
        let _ = fs::remove_file(&output); // of a process with this number before a restart
        let how = how_it_ended(order, &output);
        let said = fs::read(&output).unwrap_or_default();
        let _ = fs::remove_file(&output);
        how.answer(&said)
    }
}

fn how_it_ended(order: &CheckOrder, output: &Path) -> CheckEnd {
    let Some((program, words)) = order.run.split_first() else {
        return CheckEnd::NotRun("it does not say what is run".into());
    };
    let folder = PathBuf::from(&order.folder);
    let named = Path::new(program);
    // Windows looks for `bench\run.exe` where this process is
    let path = if named.components().count() > 1 { folder.join(named) } else { named.to_owned() };
    let arguments = words.iter().map(|word| Argument::Word(word.into())).collect();
    let program = Program {
        folder: Some(folder),
        variable: order.card.clone().map(|card| (CARD_VARIABLE, card)),
        ..Program::new(path, arguments, output.to_owned(), Duration::from_secs(order.limit_seconds))
    };
    match program.exit_code() {
        Ok(code) => CheckEnd::Ended(code),
        Err(failure) if failure.cause == Cause::TimedOut => CheckEnd::Overdue,
        Err(failure) => CheckEnd::NotRun(failure.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn answer(run: &[&str], limit_seconds: u64) -> (CheckEnd, String) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bench")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("bench/run")).unwrap();
        let order = CheckOrder {
            run: run.iter().map(|&word| word.to_owned()).collect(),
            folder: dir.path().display().to_string(),
            card: Some("0000:01:00.0".into()),
            as_user: true,
            limit_seconds,
        };
        let (order_file, answer_file) = (dir.path().join("order.json"), dir.path().join("answer"));
        fs::write(&order_file, serde_json::to_vec(&order).unwrap()).unwrap();
        Check { order: order_file, answer: Some(answer_file.clone()) }.run().unwrap();
        let bytes = fs::read(answer_file).unwrap();
        let (how, said) = CheckEnd::parse(&bytes).unwrap();
        (how, String::from_utf8(said.to_vec()).unwrap().replace(&order.folder, "FOLDER"))
    }

    #[test]
    fn a_command_runs_in_its_folder_with_its_card_and_odd_words_arrive() {
        let script = r#"pwd; echo "$NO43_CARD [$0] [$1]"; echo worse >&2; exit 3"#;
        let (how, said) = answer(&["bench/run", "-c", script, r#"a "b" \"#, "ü\n"], 60);
        assert_eq!(how, CheckEnd::Ended(3));
        assert_eq!(said, "FOLDER\n0000:01:00.0 [a \"b\" \\] [ü\n]\nworse\n");
    }

    #[test]
    fn one_that_does_not_end_is_ended_and_one_that_is_not_there_is_named() {
        let began = Instant::now();
        let (how, said) = answer(&["sh", "-c", "echo begun; sleep 100"], 1);
        assert_eq!((how, said.as_str()), (CheckEnd::Overdue, "begun\n"));
        assert!(began.elapsed() < Duration::from_secs(50));
        let (how, said) = answer(&["bench/no"], 60);
        let CheckEnd::NotRun(reason) = how else { panic!("{how:?}") };
        assert!(reason.contains("bench/no: No such file or directory") && said.is_empty(), "{reason}");
        assert_eq!(answer(&[], 60).0, CheckEnd::NotRun("it does not say what is run".into()));
    }
}
