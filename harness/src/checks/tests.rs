//! Checks against a scripted guest and a scripted eye.

use super::*;
use crate::evidence::{Record, RunDir};
use anyhow::{Result, bail};
use image::{Rgb, RgbImage};
use no43_guest::own_check::{CheckEnd, CheckOrder};
use no43_guest::pattern::Pattern;
use no43_guest::protocol::{BarKind, Connector, GuestBar, GuestFunction, LogLine, Painted, Severity};
use no43_guest::work::WorkReport;
use no43_host::{PciAddress, PciId};

pub(super) fn id(text: &str) -> PciId {
    text.parse().expect("an id should parse")
}

pub(super) fn at(text: &str) -> PciAddress {
    text.parse().expect("an address should parse")
}

/// A card with video and audio, as the lab has them.
fn card(shown_as: &str) -> Subject {
    let function =
        |host: &str, guest: &str, role: &str, own: &str, shown: &str, bars: &[(u8, u64)]| SubjectFunction {
            host: at(host),
            guest: guest.into(),
            role: role.into(),
            id: id(own),
            shown_as: id(shown),
            bars: bars.to_vec(),
        };
    Subject {
        compared: true,
        name: "Bochs display".into(),
        slot: "01:00".into(),
        functions: vec![
            function(
                "01:00.0",
                "0000:01:00.0",
                "video",
                "1234:1111",
                shown_as,
                &[(0, 16 << 20), (2, 4096), (6, 65536)],
            ),
            function("01:00.1", "0000:01:00.1", "audio", "8086:2668", "8086:2668", &[(0, 16384)]),
        ],
        left_out: Vec::new(),
        link_width: None,
    }
}

fn guest_function(address: &str, id: &str, driver: Option<&str>, bars: &[(u8, u64)]) -> GuestFunction {
    let bar =
        |&(index, size): &(u8, u64)| GuestBar { index, size, kind: BarKind::Memory, assigned: Some(true) };
    GuestFunction {
        address: address.into(),
        id: Some(id.into()),
        driver: driver.map(Into::into),
        bars: bars.iter().map(bar).collect(),
        ..GuestFunction::default()
    }
}

/// A guest in which everything works.
fn healthy() -> Report {
    Report {
        os: Some("Debian GNU/Linux 12 (bookworm)".into()),
        kernel: Some("6.1.0-40-amd64".into()),
        boot_id: Some("b1".into()),
        functions: vec![
            guest_function("0000:01:00.0", "1234:1111", Some("bochs-drm"), &[(0, 16 << 20), (2, 4096)]),
            guest_function("0000:01:00.1", "8086:2668", Some("snd_hda_intel"), &[(0, 16384)]),
        ],
        connectors: vec![Connector {
            pci: Some("0000:01:00.0".into()),
            card: "card0".into(),
            name: "Virtual-1".into(),
            status: Some("connected".into()),
            modes: vec!["640x480".into()],
        }],
        ..Report::default()
    }
}

pub(super) struct FakeGuest {
    report: Report,
    work: WorkReport,
    painted: Option<u64>,
    pub(super) files: HashMap<String, Vec<u8>>,
    /// What work leaves as the picture of a desktop.
    pub(super) desktop: Option<Vec<u8>>,
}

/// Our program, where nothing else is asked of it than `check`.
const PROGRAM: &str = "no43-guest";

impl FakeGuest {
    /// As `no43-guest check` does what is asked for in this file.
    fn checked(&self, file: &str) -> Ran {
        let order: CheckOrder = serde_json::from_slice(&self.files[file]).unwrap();
        let how = match order.run[0].as_str() {
            "hangs" => CheckEnd::Overdue,
            "lies" => return Ran { code: Some(0), output: "ended well\n".into() },
            "crashes" => return Ran { code: Some(1), output: "no43-guest: it crashed\n".into() },
            _ if order.as_user && self.report.boot_id.is_none() => {
                CheckEnd::NotRun("nobody is logged on".into())
            }
            "fails" => CheckEnd::Ended(3),
            _ => CheckEnd::Ended(0),
        };
        let said = format!("{} in {} with {:?}\n", order.run.join(" "), order.folder, order.card);
        Ran { code: Some(0), output: String::from_utf8(how.answer(said.as_bytes())).unwrap() }
    }

    pub(super) fn new(report: Report, work: WorkReport) -> Self {
        Self { report, work, painted: None, files: HashMap::new(), desktop: None }
    }
}

impl Guest for FakeGuest {
    fn report(&mut self) -> Result<Report> {
        Ok(self.report.clone())
    }
    fn paint(&mut self, card: &str, seed: u64) -> Result<Painted> {
        if self.report.function(card).and_then(|f| f.driver.as_ref()).is_none() {
            bail!("no DRM device has {card}");
        }
        self.painted = Some(seed);
        SEED.with(|s| s.set(seed));
        Ok(Painted {
            address: card.into(),
            connector: "Virtual-1".into(),
            width: 64,
            height: 48,
            seed,
            ..Painted::default()
        })
    }
    fn unpaint(&mut self) -> Result<()> {
        Ok(())
    }
    fn work(&mut self, _: &str, _: &[&str]) -> Result<WorkReport> {
        self.files.extend(self.desktop.take().map(|png| (r"C:\Windows\Temp\desktop.png".into(), png)));
        Ok(self.work.clone())
    }
    fn run(&mut self, argv: &[String], _: Duration) -> Result<Ran> {
        if argv.iter().any(|word| word == "del") {
            self.files.remove(argv.last().map_or("", String::as_str));
        }
        if argv[0] == PROGRAM {
            return Ok(self.checked(&argv[2]));
        }
        let code = if argv.iter().any(|word| word == "fails") { 3 } else { 0 };
        Ok(Ran { code: Some(code), output: format!("ran {}\n", argv.join(" ")) })
    }
    fn program(&mut self) -> String {
        PROGRAM.into()
    }
    fn put(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.files.insert(path.into(), bytes.to_vec());
        Ok(())
    }
    fn fetch(&mut self, path: &str, _: u64) -> Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| anyhow::anyhow!("no such file"))
    }
    fn gone(&mut self) -> Option<String> {
        None
    }
    fn last_boot_id(&self) -> Option<String> {
        self.report.boot_id.clone()
    }
}

thread_local! {
    /// What the guest painted last: the only thing that guest and output share.
    static SEED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// What the output shows, given what the guest painted.
struct FakeEye(fn(u64) -> Result<RgbImage>);

impl Eye for FakeEye {
    fn capture(&mut self, _: &PciAddress) -> Result<RgbImage> {
        (self.0)(SEED.with(std::cell::Cell::get))
    }
}

fn painted(seed: u64) -> RgbImage {
    let pattern = Pattern::new(seed, 64, 48);
    RgbImage::from_raw(64, 48, (0..48).flat_map(|y| pattern.row_rgb(y)).collect())
        .expect("the size should fit")
}

const ALL: ChecksPlan = ChecksPlan {
    card: true,
    driver: true,
    connector: true,
    picture: true,
    quiet: false,
    work: None,
    driver_version: None,
    skip: std::collections::BTreeMap::new(),
    own: Vec::new(),
    lifecycle: Vec::new(),
    ready_limit: 60,
};
pub(super) const NO_WAIT: Limits = Limits {
    program: Duration::ZERO,
    driver: Duration::ZERO,
    picture: Duration::ZERO,
    pause: Duration::ZERO,
};

/// One round, or several with the same seeds, as lines "mark name: seen".
fn ask(
    report: Report,
    subject: &Subject,
    eye: Option<fn(u64) -> Result<RgbImage>>,
    required: &[Capability],
) -> (String, RoundResult) {
    let root = tempfile::tempdir().unwrap();
    let mut sink = |_: &Record| {};
    let mut recorder = Recorder::new(RunDir::create(root.path(), "test").unwrap(), &mut sink);
    let mut guest = FakeGuest::new(report, WorkReport::default());
    let mut eye = eye.map(FakeEye);
    let mut seeds = HashMap::new();
    let mut asking = Asking {
        guest: &mut guest,
        eye: eye.as_mut().map(|e| e as &mut dyn Eye),
        recorder: &mut recorder,
        stop: &Stop::new(),
        limits: NO_WAIT,
        round: Round::First,
        required,
        host: None,
        driver_version: None,
        work: WorkWish::Usual,
        user: None,
        choice: &Choice::default(),
        last: None,
        seeds: &mut seeds,
    };
    let result = run_round(&ALL, std::slice::from_ref(subject), &mut asking);
    (lines(&result), result)
}

pub(super) fn lines(round: &RoundResult) -> String {
    let line = |r: &CheckResult| match &r.answer {
        Outcome::Passed => format!("✔ {}: {}", r.check, r.seen),
        Outcome::Failed => format!("✘ {}: {}", r.check, r.seen),
        Outcome::Skipped { reason } => format!("– {}: {reason}", r.check),
    };
    round.results.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_card_that_works() {
    let (text, result) = ask(healthy(), &card("1234:1111"), Some(|seed| Ok(painted(seed))), &[]);
    insta::assert_snapshot!(text, @"
    ✔ agent: Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    ✔ present: 2 of 2 functions, 1234:1111 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host
    ✔ driver: bochs-drm
    ✔ audio: snd_hda_intel
    – link: this host knows no PCI Express link of this card, so there is nothing to compare with
    ✔ connector: Virtual-1 connected, 640x480
    ✔ picture: the pattern painted in the guest is on the card's own output (64x48, equal)
    ");
    assert!(result.failure.is_none());
    assert_eq!(result.results.last().unwrap().evidence.len(), 2);
}

#[test]
fn a_card_that_says_rtx_3070_and_cannot_work() {
    let mut report = healthy();
    report.functions[0] = guest_function("0000:01:00.0", "10de:2484", None, &[(0, 16 << 20), (2, 4096)]);
    report.connectors.clear();
    report.log = vec![
        LogLine {
            text: "snd_hda_intel 0000:01:00.1: no codecs found!".into(),
            severity: Severity::Warning,
            ..LogLine::default()
        },
        LogLine {
            text: "nouveau 0000:01:00.0: unknown chipset (00000000)".into(),
            severity: Severity::Error,
            ..LogLine::default()
        },
    ];
    let (text, result) = ask(report, &card("10de:2484"), Some(|seed| Ok(painted(seed))), &[]);
    insta::assert_snapshot!(text, @"
    ✔ agent: Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    ✔ present: 2 of 2 functions, 10de:2484 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host
    ✘ driver: no driver has 0000:01:00.0 (10de:2484)
    ✔ audio: snd_hda_intel
    – link: this host knows no PCI Express link of this card, so there is nothing to compare with
    – connector: 'driver' does not hold, so there is nothing to ask
    – picture: 'driver' does not hold, so there is nothing to ask
    ");
    let (failed, kind) = result.failure.unwrap();
    assert_eq!((failed.check.as_str(), kind), ("driver", FailureKind::Guest));
    assert_eq!(failed.guest_lines[0], "nouveau 0000:01:00.0: unknown chipset (00000000)");
    assert_eq!(result.marks, [Mark::PresentAs]);
}

#[test]
fn missing_functions_ids_and_small_bars_are_named() {
    let mut report = healthy();
    report.functions = vec![guest_function("0000:01:00.0", "1234:1112", Some("bochs-drm"), &[(0, 8 << 20)])];
    let (text, _) = ask(report, &card("1234:1111"), None, &[]);
    insta::assert_snapshot!(text, @"
    ✔ agent: Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    ✘ present: 0000:01:00.0 video: shows 1234:1112 instead of 1234:1111; 0000:01:00.0 video: BAR0 has 8 MiB instead of 16 MiB; 0000:01:00.0 video: BAR2 (4 KiB) is missing; 0000:01:00.1 audio is not at 0000:01:00.1 in the guest
    ✔ driver: bochs-drm
    ✘ audio: no driver has 0000:01:00.1 (8086:2668)
    – link: 'present' does not hold, so there is nothing to ask
    ✔ connector: Virtual-1 connected, 640x480
    – picture: no eye outside the guest (capability card-capture): a lab has one, a real host needs a capture card
    ");
}

#[test]
fn outputs_that_do_not_show_the_pattern() {
    let see = |eye| ask(healthy(), &card("1234:1111"), Some(eye), &[]).0.lines().last().unwrap().to_owned();
    let blank = see(|_| Ok(RgbImage::from_pixel(64, 48, Rgb([0, 0, 0]))));
    let other_size = see(|seed| {
        let pattern = Pattern::new(seed, 32, 32);
        Ok(RgbImage::from_raw(32, 32, (0..32).flat_map(|y| pattern.row_rgb(y)).collect()).unwrap())
    });
    let one_pixel = see(|seed| {
        let mut picture = painted(seed);
        picture.get_pixel_mut(5, 7).0[1] ^= 1;
        Ok(picture)
    });
    let no_eye = see(|_| bail!("the lab's port did not answer within 10 s"));
    assert!(blank.contains("one colour only (#000000, 64x48)"), "{blank}");
    assert!(other_size.starts_with("✘ picture"), "{other_size}");
    assert!(one_pixel.starts_with("✘ picture") && one_pixel.contains('1'), "{one_pixel}");
    assert!(no_eye.contains("did not answer within 10 s"), "{no_eye}");
}

#[test]
fn the_picture_of_the_round_before_does_not_pass() {
    let root = tempfile::tempdir().unwrap();
    let mut sink = |_: &Record| {};
    let mut recorder = Recorder::new(RunDir::create(root.path(), "test").unwrap(), &mut sink);
    let mut guest = FakeGuest::new(healthy(), WorkReport::default());
    let mut seeds = HashMap::from([("01:00".to_owned(), 7)]);
    let mut eye = FakeEye(|_| Ok(painted(7)));
    let mut asking = Asking {
        guest: &mut guest,
        eye: Some(&mut eye),
        recorder: &mut recorder,
        stop: &Stop::new(),
        limits: NO_WAIT,
        round: Round::AfterReboot,
        required: &[],
        host: None,
        driver_version: None,
        work: WorkWish::Usual,
        user: None,
        choice: &Choice::default(),
        last: None,
        seeds: &mut seeds,
    };
    let result = run_round(&ALL, &[card("1234:1111")], &mut asking);
    assert_eq!(result.marks, [Mark::ConnectorSeen, Mark::StalePicture]);
    assert_eq!(result.results.last().unwrap().full_name(), "picture again after reboot");
    // expected, seen, difference
    assert_eq!(result.results.last().unwrap().evidence.len(), 3);
}

#[test]
fn without_an_eye_the_picture_is_skipped_unless_it_is_required() {
    let (text, result) = ask(healthy(), &card("1234:1111"), None, &[]);
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("– picture: no eye outside the guest (capability card-capture)"),
        "{text}"
    );
    assert!(result.failure.is_none());
    let (_, result) = ask(healthy(), &card("1234:1111"), None, &[Capability::CardCapture]);
    assert_eq!(result.failure.unwrap().1, FailureKind::Lab);
}

#[test]
fn what_came_back_is_compared_with_what_was_there() {
    let back = |now: Option<&str>| {
        let one = |address: &str, before: &str, now: Option<&str>| Returned {
            address: address.into(),
            before: Some(before.into()),
            now: now.map(Into::into),
        };
        given_back(
            &[one("01:00.0", "bochs-drm", now), one("01:00.1", "snd_hda_intel", Some("snd_hda_intel"))],
            None,
            Duration::ZERO,
        )
        .0
    };
    assert_eq!(back(Some("bochs-drm")).seen, "bochs-drm and snd_hda_intel have their devices again");
    assert_eq!(back(None).seen, "01:00.0 has no driver instead of bochs-drm");
    assert!(back(Some("vfio-pci")).failed());
}

#[test]
fn checks_of_ones_own_are_cases_like_any_other() {
    use no43_builder::plan::{OwnCheck, Session};
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("bench/sub")).unwrap();
    std::fs::write(dir.path().join("bench/sub/data"), "x").unwrap();
    let own = |name: &str, run: &[&str], each_card: bool| OwnCheck {
        copy: vec![dir.path().join("bench")],
        run: run.iter().map(|&word| word.to_owned()).collect(),
        each_card,
        ..own_check_for_tests(name, Session::Service)
    };
    let silent = OwnCheck { says: Some("59 fps".into()), ..own("says", &["./bench/run"], false) };
    let counts = OwnCheck { metrics: Some("/run/out.json".into()), ..own("counts", &["./bench/run"], false) };
    let plan = ChecksPlan {
        own: vec![own("runs", &["./bench/run"], true), own("breaks", &["fails"], false), silent, counts],
        ..ALL
    };
    let root = tempfile::tempdir().unwrap();
    let mut sink = |_: &Record| {};
    let mut recorder = Recorder::new(RunDir::create(root.path(), "test").unwrap(), &mut sink);
    let mut guest = FakeGuest::new(healthy(), WorkReport::default());
    guest.files.insert("/run/out.json".into(), br#"{"fps": 60}"#.to_vec());
    let choice =
        Choice { only: ["runs", "breaks", "says", "counts"].map(str::to_owned).to_vec(), skip: Vec::new() };
    let mut asking = Asking {
        guest: &mut guest,
        eye: None,
        recorder: &mut recorder,
        stop: &Stop::new(),
        limits: NO_WAIT,
        round: Round::First,
        required: &[],
        host: None,
        driver_version: None,
        work: WorkWish::Usual,
        user: None,
        choice: &choice,
        last: None,
        seeds: &mut HashMap::new(),
    };
    let result = run_round(&plan, &[card("1234:1111")], &mut asking);
    insta::assert_snapshot!(lines(&result), @"
    ✔ agent: Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    ✔ runs: it ended with 0
    ✘ breaks: it ended with 3: ran env -C /run/no43-check/breaks fails
    ✘ says: it did not say '59 fps': ran env -C /run/no43-check/says ./bench/run
    ✔ counts: fps 60
    ");
    assert_eq!(result.results[1].card, "01:00");
    assert_eq!(result.results[4].metrics[0].value, "60");
    assert_eq!(guest.files["/run/no43-check/runs/bench/sub/data"], b"x");
}
