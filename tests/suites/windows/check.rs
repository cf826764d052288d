//! Checks of a recipe's own, as the guest program runs them.

use anyhow::{Context as _, Result, ensure};
use no43_guest::own_check::{CheckEnd, CheckOrder};
use no43_tests::{Scene, Wine};

pub(super) fn check(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let work = scene.work();
    std::fs::create_dir_all(work.join("check/bench"))?;
    std::fs::copy(no43_tests::programs::windows_guest()?, work.join("check/bench/tool.exe"))?;
    let ask = |order: &CheckOrder, more: &[&str]| -> Result<(CheckEnd, String)> {
        std::fs::write(work.join("check/no43-check.json"), serde_json::to_vec(order)?)?;
        let words = [&["check", r"F:\check\no43-check.json"], more].concat();
        let seen = wine.guest(&words)?.limit(90).ok()?;
        let (how, said) = CheckEnd::parse(seen.stdout.as_bytes()).with_context(|| format!("{seen:?}"))?;
        Ok((how, String::from_utf8(said.to_vec())?))
    };
    let order = |run: &[&str], limit_seconds| CheckOrder {
        run: run.iter().map(|&word| word.to_owned()).collect(),
        folder: r"F:\check".into(),
        card: Some("0000:01:00.0".into()),
        as_user: false,
        limit_seconds,
    };

    let here = order(&["cmd.exe", "/c", "cd & echo %NO43_CARD%& exit 3"], 60);
    let there = (CheckEnd::Ended(3), "F:\\check\r\n0000:01:00.0\r\n".to_owned());
    let seen = ask(&here, &[])?;
    ensure!(seen == there, "{seen:?}");
    // Wine has one session, and somebody is logged on
    let seen = ask(&CheckOrder { as_user: true, ..here }, &[])?;
    ensure!(seen == there, "{seen:?}");

    // a program among the check's own files
    let (how, said) = ask(&order(&[r"bench\tool.exe", "--version"], 60), &[])?;
    ensure!(how == CheckEnd::Ended(0) && said.starts_with("no43-guest "), "{how:?}: {said}");
    let (how, _) = ask(&order(&[r"bench\no.exe"], 60), &[])?;
    ensure!(matches!(&how, CheckEnd::NotRun(why) if why.contains(r"F:\check\bench\no.exe")), "{how:?}");

    // with all that it has started
    let seen = ask(&order(&["cmd.exe", "/c", "echo begun& ping -n 100 127.0.0.1 > nul"], 2), &[])?;
    ensure!(seen == (CheckEnd::Overdue, "begun\r\n".to_owned()), "{seen:?}");

    // Wine's scheduler takes the task, and never runs any
    let (how, _) =
        ask(&CheckOrder { as_user: true, ..order(&["cmd.exe", "/c", "exit 3"], 1) }, &["--hand-over"])?;
    let why = "the logged-on user's session gave no answer within 11 s";
    ensure!(how == CheckEnd::NotRun(why.into()), "{how:?}");
    Ok(())
}
