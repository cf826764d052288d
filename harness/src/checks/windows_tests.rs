//! Reports of a Windows guest with a GeForce, well and broken in one place each: fixtures, since no Windows runs here.

use super::tests::{FakeGuest, NO_WAIT, at, id, lines};
use super::*;
use crate::diagnosis::diagnose;
use crate::evidence::{Record, RunDir};
use no43_builder::plan::{OwnCheck, Session};
use no43_guest::protocol::parse_report;
use no43_guest::work::WorkReport;
use serde_json::{Value, json};

const REPORT: &str = include_str!("../../fixtures/report-windows.json");

fn rtx_3070() -> Subject {
    let function = |n: u8, role: &str, own: &str, bars: &[(u8, u64)]| SubjectFunction {
        host: at(&format!("4d:00.{n}")),
        guest: format!("0000:01:00.{n}"),
        role: role.into(),
        id: id(own),
        shown_as: id(own),
        bars: bars.to_vec(),
    };
    Subject {
        compared: true,
        name: "GeForce RTX 3070 (GA104)".into(),
        slot: "4d:00".into(),
        functions: vec![
            function(0, "video", "10de:2484", &[(0, 16 << 20), (1, 8 << 30), (3, 32 << 20)]),
            function(1, "audio", "10de:228b", &[(0, 16384)]),
        ],
        left_out: Vec::new(),
        link_width: Some(16),
    }
}

struct QuietHost(Complaints);

impl HostEye for QuietHost {
    fn complaints(&mut self) -> Complaints {
        self.0.clone()
    }
}

/// Checks and likeliest cause for the fixture after some changes, given as JSON pointers with new values.
fn ask(
    changes: &[(&str, Value)],
    work: Value,
    host: Complaints,
    choice: &Choice,
) -> (String, Option<FailureKind>) {
    let mut report: Value = serde_json::from_str(REPORT).unwrap();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        report.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    let report = parse_report(report.to_string().as_bytes()).unwrap();
    let work: WorkReport = serde_json::from_value(work).unwrap();
    let (text, kind, _) = ask_guest(FakeGuest::new(report, work), host, choice, WorkWish::Usual, Vec::new());
    (text, kind)
}

/// The same of any guest; the last answer is every result.
fn ask_guest(
    mut guest: FakeGuest,
    host: Complaints,
    choice: &Choice,
    wish: WorkWish,
    own: Vec<OwnCheck>,
) -> (String, Option<FailureKind>, Vec<CheckResult>) {
    let root = tempfile::tempdir().unwrap();
    let mut sink = |_: &Record| {};
    let mut recorder = Recorder::new(RunDir::create(root.path(), "test").unwrap(), &mut sink);
    let mut host = QuietHost(host);
    let mut asking = Asking {
        guest: &mut guest,
        eye: None,
        recorder: &mut recorder,
        stop: &Stop::new(),
        limits: NO_WAIT,
        round: Round::First,
        required: &[],
        host: Some(&mut host),
        driver_version: Some("466.11".into()),
        work: wish.clone(),
        user: None,
        choice,
        last: None,
        seeds: &mut HashMap::new(),
    };
    let plan = ChecksPlan {
        card: true,
        driver: true,
        connector: true,
        picture: false,
        quiet: true,
        work: Some(wish),
        driver_version: Some("466.11".into()),
        skip: std::collections::BTreeMap::new(),
        own,
        lifecycle: Vec::new(),
        ready_limit: 60,
    };
    let result = run_round(&plan, &[rtx_3070()], &mut asking);
    let mut facts = result.facts.clone();
    let mut text = lines(&result);
    if let Some((failed, _)) = &result.failure {
        facts.add("run.failed", &failed.check);
        let first = diagnose(&facts).into_iter().next().map_or("none".into(), |f| f.id);
        text.push_str(&format!("\ncause: {first}"));
    }
    (text, result.failure.map(|(_, kind)| kind), result.results)
}

fn works() -> Value {
    json!({"version": 1, "results": [
        {"name": "cuda-checksum", "outcome": "passed", "adapter": {"name": "NVIDIA GeForce RTX 3070", "address": "0000:01:00.0", "id": "10de:2484", "software": false}},
        {"name": "cuda-copy", "outcome": "passed", "adapter": {"name": "NVIDIA GeForce RTX 3070", "id": "10de:2484"}, "metrics": [{"name": "copy-to-card", "value": 11_800_000_000_u64, "unit": "bytes/s"}]},
        {"name": "optix-trace", "outcome": "skipped", "cause": "no-library", "reason": "nvoptix.dll is not here"},
    ]})
}

#[test]
fn a_desktop_comes_out_as_a_picture_and_as_nothing_else() {
    let card = json!({"name": "NVIDIA GeForce RTX 3070", "id": "10de:2484"});
    let work = json!({"version": 1, "results": [
        {"name": "desktop-picture", "outcome": "passed", "adapter": card, "picture": "../../etc/passwd"},
    ]});
    let stale = b"of a run before".to_vec();
    let guest = |left: Option<Vec<u8>>| {
        let report = parse_report(REPORT.as_bytes()).unwrap();
        let mut guest = FakeGuest::new(report, serde_json::from_value(work.clone()).unwrap());
        guest.files.insert(r"C:\Windows\Temp\desktop.png".into(), stale.clone());
        guest.desktop = left;
        let wish = WorkWish::Only(vec!["desktop".into()]);
        let (_, _, results) = ask_guest(guest, Complaints::default(), &Choice::default(), wish, Vec::new());
        results.into_iter().find(|result| result.check == "work").unwrap()
    };
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(4, 3).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let good = guest(Some(png.into_inner()));
    assert!(good.passed() && good.evidence.len() == 1, "{good:?}");
    assert!(good.evidence[0].starts_with("frames/") && good.details.len() == 1, "{good:?}");
    let bad = guest(Some(b"MZ, no picture".to_vec()));
    assert!(bad.evidence.is_empty() && bad.details[0].starts_with("desktop-picture: passed"), "{bad:?}");
    assert!(bad.details[1].starts_with("no picture of the desktop"), "{bad:?}");
    let none = guest(None);
    assert!(
        none.details[1].contains("no such file"),
        "a picture that was there before is not taken: {none:?}"
    );
}

fn seen(changes: &[(&str, Value)]) -> String {
    ask(changes, works(), Complaints::default(), &Choice::default()).0
}

#[test]
fn a_geforce_that_works() {
    insta::assert_snapshot!(seen(&[]), @"
    ✔ agent: Windows 10 Pro, 10.0.19045.5011
    ✔ present: 2 of 2 functions, 10de:2484 + 10de:228b; the guest does not tell their BARs
    ✔ no code: problem code 0 on all 2
    ✔ driver: nvlddmkm
    ✔ version: 466.11
    ✔ audio: HDAudBus
    ✔ link: 16 lanes, generation 4 now
    – connector: Windows has no DRM connectors; 'work' shows whether a desktop is on the card
    ✔ work: cuda-checksum, cuda-copy (copy-to-card 11.8 GB/s)
    ✔ quiet: 0 lines of the guest about cards, none of them bad; the host's kernel is quiet
    ");
}

#[test]
fn code_43_with_an_old_driver() {
    let old =
        [("/functions/0/node/problem", json!(43)), ("/functions/0/driver_version", json!("27.21.14.6172"))];
    insta::assert_snapshot!(seen(&old), @"
    ✔ agent: Windows 10 Pro, 10.0.19045.5011
    ✔ present: 2 of 2 functions, 10de:2484 + 10de:228b; the guest does not tell their BARs
    ✘ no code: 10de:2484 (video): problem code 43 (CM_PROB_FAILED_POST_START): the driver started the card and then reported it as failed
    ✔ driver: nvlddmkm
    ✘ version: driver 461.72 is installed
    ✔ audio: HDAudBus
    ✔ link: 16 lanes, generation 4 now
    – connector: Windows has no DRM connectors; 'work' shows whether a desktop is on the card
    ✔ work: cuda-checksum, cuda-copy (copy-to-card 11.8 GB/s)
    ✔ quiet: 0 lines of the guest about cards, none of them bad; the host's kernel is quiet
    cause: driver-older-than-465
    ");
}

#[test]
fn code_28_is_a_missing_driver_and_nothing_of_code_43() {
    let none = [
        ("/functions/0/node/problem", json!(28)),
        ("/functions/0/driver", Value::Null),
        ("/functions/0/driver_version", Value::Null),
    ];
    insta::assert_snapshot!(seen(&none), @"
    ✔ agent: Windows 10 Pro, 10.0.19045.5011
    ✔ present: 2 of 2 functions, 10de:2484 + 10de:228b; the guest does not tell their BARs
    ✘ no code: 10de:2484 (video): problem code 28 (CM_PROB_FAILED_INSTALL): no driver is installed for the card
    ✘ driver: no driver has 0000:01:00.0 (10de:2484)
    – version: 'driver' does not hold, so there is nothing to ask
    ✔ audio: HDAudBus
    ✔ link: 16 lanes, generation 4 now
    – connector: 'driver' does not hold, so there is nothing to ask
    – work: 'driver' does not hold, so there is nothing to ask
    ✔ quiet: 0 lines of the guest about cards, none of them bad; the host's kernel is quiet
    cause: no-inf-matches
    ");
}

#[test]
fn the_basic_display_driver_is_not_the_cards_own_although_its_code_is_0() {
    let basic = [
        ("/functions/0/driver", json!("BasicDisplay")),
        ("/functions/0/driver_version", json!("10.0.19041.5007")),
    ];
    insta::assert_snapshot!(seen(&basic), @"
    ✔ agent: Windows 10 Pro, 10.0.19045.5011
    ✔ present: 2 of 2 functions, 10de:2484 + 10de:228b; the guest does not tell their BARs
    ✔ no code: problem code 0 on all 2
    ✘ driver: BasicDisplay has 0000:01:00.0 (10de:2484), which is not the card's own driver
    – version: 'driver' does not hold, so there is nothing to ask
    ✔ audio: HDAudBus
    ✔ link: 16 lanes, generation 4 now
    – connector: 'driver' does not hold, so there is nothing to ask
    – work: 'driver' does not hold, so there is nothing to ask
    ✔ quiet: 0 lines of the guest about cards, none of them bad; the host's kernel is quiet
    cause: software-adapter
    ");
}

#[test]
fn each_wrong_thing_has_its_own_check() {
    let failing = |changes: &[(&str, Value)]| {
        let text = seen(changes);
        text.lines().find(|line| line.starts_with('✘')).unwrap_or("nothing failed").to_owned()
    };
    insta::assert_snapshot!(failing(&[("/functions/0/driver_version", json!("27.21.14.5671"))]), @"✘ version: driver 456.71 is installed");
    insta::assert_snapshot!(failing(&[("/functions/0/link", json!({"width": 4}))]), @"✘ link: 4 lanes");
    insta::assert_snapshot!(failing(&[("/functions/1/driver", Value::Null)]), @"✘ audio: no driver has 0000:01:00.1 (10de:228b)");
    insta::assert_snapshot!(failing(&[("/functions/1/node/problem", json!(10))]), @"✘ no code: 10de:228b (audio): problem code 10 (CM_PROB_FAILED_START): the driver's start routine failed");
    insta::assert_snapshot!(failing(&[("/functions/0/id", json!("10de:2486"))]), @"✘ present: 0000:4d:00.0 video: shows 10de:2486 instead of 10de:2484");
    insta::assert_snapshot!(failing(&[("/events", json!([{"provider": "Display", "id": 4101, "level": 3, "data": ["nvlddmkm"]}]))]), @"✘ quiet: Display event 4101: nvlddmkm");
    insta::assert_snapshot!(failing(&[("/functions/0/node/problem", Value::Null)]), @"✘ no code: 10de:2484 (video): problem code unknown");
}

#[test]
fn work_by_somebody_else_is_not_the_cards() {
    let done = |adapter: Value| {
        let work = json!({"results": [{"name": "d3d11-scene", "outcome": "passed", "adapter": adapter}]});
        let text = ask(&[], work, Complaints::default(), &Choice::default()).0;
        text.lines().find(|line| line.contains(" work: ")).unwrap().to_owned()
    };
    insta::assert_snapshot!(done(json!({"name": "Microsoft Basic Render Driver"})), @"✘ work: d3d11-scene: not done by the card: Microsoft Basic Render Driver is a software adapter");
    insta::assert_snapshot!(done(json!({"name": "RTX 3070", "software": true})), @"✘ work: d3d11-scene: not done by the card: RTX 3070 is a software adapter");
    insta::assert_snapshot!(done(json!({"name": "RTX 3070", "address": "0000:02:00.0"})), @"✘ work: d3d11-scene: not done by the card: RTX 3070 is at 0000:02:00.0, the card is at 0000:01:00.0");
    insta::assert_snapshot!(done(json!({"name": "RTX 3070", "id": "10de:2484"})), @"✔ work: d3d11-scene");
    insta::assert_snapshot!(done(Value::Null), @"✘ work: d3d11-scene: not done by the card: it does not say on which adapter");
}

#[test]
fn a_complaint_of_the_host_is_the_hosts_fault() {
    let host = Complaints { errors: vec!["0000:00:01.0: 1 non-fatal".into()], ..Complaints::default() };
    let (text, kind) = ask(&[], works(), host, &Choice::default());
    assert!(text.contains("✘ quiet: host: 0000:00:01.0: 1 non-fatal"), "{text}");
    assert_eq!(kind, Some(FailureKind::Host));
}

#[test]
fn what_is_chosen_is_asked_and_what_is_left_out_says_why() {
    let only = Choice { only: vec!["driver".into()], skip: Vec::new() };
    assert_eq!(ask(&[], works(), Complaints::default(), &only).0.lines().count(), 2);
    let skip = Choice { only: Vec::new(), skip: vec![("driver".into(), "known to be odd".into())] };
    let broken = [("/functions/0/driver", json!("BasicDisplay"))];
    let (text, kind) = ask(&broken, works(), Complaints::default(), &skip);
    assert!(text.contains("– driver: left out: known to be odd") && text.contains("✔ version"), "{text}");
    assert_eq!(kind, None);
    let plan = crate::verify::plan_for_tests(Vec::new()).checks;
    let moon = Choice { only: vec!["moon".into()], skip: Vec::new() }.mistake(&plan).unwrap();
    assert!(moon.starts_with("no check is called 'moon'; there are: agent, present"), "{moon}");
    assert_eq!(only.mistake(&plan), None);
}

#[test]
fn checks_of_ones_own_are_run_by_our_program_in_their_folder_and_session() {
    let own = |name: &str, session| OwnCheck {
        run: vec![name.into(), "a \"b\" \\".into()],
        says: (name == "runs")
            .then(|| "runs a \"b\" \\ in C:\\no43-check\\runs with Some(\"0000:01:00.0\")".into()),
        each_card: name == "runs",
        ..own_check_for_tests(name, session)
    };
    let names = ["runs", "fails", "hangs", "lies", "crashes", "looks"];
    let choice = Choice { only: names.map(str::to_owned).to_vec(), skip: Vec::new() };
    let all = |boot_id: Option<&str>| {
        let mut report = parse_report(REPORT.as_bytes()).unwrap();
        report.boot_id = boot_id.map(str::to_owned);
        let session = |name| if name == "looks" { Session::User } else { Session::Service };
        let own = names.map(|name| own(name, session(name))).to_vec();
        let guest = FakeGuest::new(report, WorkReport::default());
        ask_guest(guest, Complaints::default(), &choice, WorkWish::Usual, own).0
    };
    insta::assert_snapshot!(all(None), @r#"
    ✔ agent: Windows 10 Pro, 10.0.19045.5011
    ✔ runs: it ended with 0
    ✘ fails: it ended with 3: fails a "b" \ in C:\no43-check\fails with None
    ✘ hangs: it did not end within 60 s: hangs a "b" \ in C:\no43-check\hangs with None
    ✘ lies: the guest program could not run it: ended well
    ✘ crashes: the guest program could not run it: no43-guest: it crashed
    ✘ looks: it was not run: nobody is logged on
    cause: none
    "#);
    assert!(all(Some("b1")).contains("✔ looks: it ended with 0"));
}
