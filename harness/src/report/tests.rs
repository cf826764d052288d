//! Reports of a made-up run with everything in it, and of runs whose every foreign string is hostile.

use super::*;
use crate::diagnosis::Finding;
use crate::evidence::read::Run;
use crate::evidence::{CardFacts, CheckResult, Event, Fact, Frame, Outcome, Record, Round, Section};
use crate::verdict::{FailureKind, Verdict};
use image::{Rgb, RgbImage};
use no43_guest::pattern::Pattern;
use proptest::prelude::*;

/// Lines of an event file with a time for each.
struct Script {
    records: Vec<Record>,
    section: Section,
}

impl Script {
    fn new() -> Self {
        let start = Event::RunStarted {
            run: "2026-11-22-3f9c".into(),
            recipe: "lab-guest".into(),
            no43: "0.1.0".into(),
            started: "2026-11-22T17:05:09Z".into(),
            pid: 7,
        };
        let mut script = Self { records: Vec::new(), section: Section::Main };
        script.at(0, start);
        script
    }

    fn at(&mut self, ms: u64, event: Event) -> &mut Self {
        let seq = self.records.len() as u64;
        self.records.push(Record { v: 1, seq, ms, section: self.section, event });
        self
    }

    fn phase(
        &mut self,
        from: u64,
        to: u64,
        name: &str,
        limit_ms: Option<u64>,
        problem: Option<&str>,
    ) -> &mut Self {
        self.at(from, Event::PhaseStarted { phase: name.into(), limit_ms, note: String::new() });
        self.at(
            to,
            Event::PhaseEnded { phase: name.into(), took_ms: to - from, problem: problem.map(Into::into) },
        )
    }

    fn check(
        &mut self,
        ms: u64,
        name: &str,
        round: Round,
        answer: Outcome,
        seen: &str,
        evidence: &[&str],
    ) -> &mut Self {
        let card = if matches!(name, "agent" | "given back") { "" } else { "01:00" };
        let result = CheckResult {
            layer: String::new(),
            metrics: Vec::new(),
            check: name.into(),
            card: card.into(),
            round,
            answer,
            expected: format!("what '{name}' expects"),
            seen: seen.into(),
            details: vec![format!("a detail of '{name}'")],
            guest_lines: Vec::new(),
            evidence: evidence.iter().map(|&e| e.to_owned()).collect(),
            took_ms: 120,
        };
        self.at(ms, Event::Check { result })
    }

    fn write(&self, folder: &Path) -> Run {
        let started = r#"{"run":"2026-11-22-3f9c","recipe":"lab-guest","no43":"0.1.0","started":"2026-11-22T17:05:09Z","pid":1,"pid_start":1,"boot":"-"}"#;
        std::fs::create_dir_all(folder.join("frames")).unwrap();
        std::fs::create_dir_all(folder.join("logs")).unwrap();
        std::fs::write(folder.join("started.json"), started).unwrap();
        let lines: Vec<String> =
            self.records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
        std::fs::write(folder.join("events.jsonl"), lines.concat()).unwrap();
        Run::open(folder).unwrap()
    }
}

fn frame(folder: &Path, name: &str, source: &str, caption: &str, picture: &RgbImage) -> Event {
    let file = format!("frames/{name}.png");
    std::fs::create_dir_all(folder.join("frames")).unwrap();
    std::fs::write(folder.join(&file), crate::evidence::encode(picture).unwrap()).unwrap();
    Event::FrameAdded {
        frame: Frame {
            file,
            source: source.into(),
            width: picture.width(),
            height: picture.height(),
            caption: caption.into(),
        },
    }
}

fn pattern(seed: u64, width: u32, height: u32) -> RgbImage {
    let pattern = Pattern::new(seed, width, height);
    RgbImage::from_raw(width, height, (0..height).flat_map(|y| pattern.row_rgb(y)).collect()).unwrap()
}

fn card(present_as: Option<&str>) -> Event {
    let mut facts = vec![
        Fact::new("video", "01:00.0 1234:1111 (bochs-drm) BAR0 16 MiB, BAR2 4 KiB"),
        Fact::new("audio", "01:00.1 8086:2668 (snd_hda_intel) BAR0 16 KiB"),
        Fact::new("IOMMU group", "13"),
    ];
    facts.extend(present_as.map(|id| Fact::new("shown as", id)));
    Event::Card {
        card: CardFacts {
            name: "QEMU standard VGA".into(),
            slot: "01:00".into(),
            roles: vec!["video".into(), "audio".into()],
            facts,
            stays: false,
        },
    }
}

/// A pass with two rounds and a control.
fn passed(folder: &Path) -> Script {
    let mut s = Script::new();
    s.at(40, card(None)).phase(10, 50, "lease", None, None).phase(60, 900, "bind", None, None);
    s.at(
        900,
        Event::HostChange {
            target: "0000:01:00.0".into(),
            before: "bochs-drm".into(),
            after: "vfio-pci".into(),
        },
    );
    s.at(
        900,
        Event::HostChange {
            target: "0000:01:00.1".into(),
            before: "snd_hda_intel".into(),
            after: "vfio-pci".into(),
        },
    );
    s.at(
        910,
        Event::Facts {
            subject: "machine".into(),
            facts: vec![Fact::new("accelerator", "KVM"), Fact::new("memory", "512 MiB")],
        },
    );
    s.phase(920, 1400, "start", Some(60_000), None).phase(1400, 25_500, "agent", Some(180_000), None);
    s.at(
        9000,
        frame(
            folder,
            "0009.000-screen",
            "screen",
            "the guest's emulated screen",
            &RgbImage::from_pixel(320, 200, Rgb([0, 0, 64])),
        ),
    );
    for (round, ms, seed) in [(Round::First, 26_000, 1), (Round::AfterReboot, 60_000, 2)] {
        s.check(ms, "agent", round, Outcome::Passed, "Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64", &[]);
        s.check(
            ms + 300,
            "present",
            round,
            Outcome::Passed,
            "2 of 2 functions, 1234:1111 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host",
            &[],
        );
        s.check(ms + 600, "driver", round, Outcome::Passed, "bochs-drm", &[]);
        s.check(ms + 900, "connector", round, Outcome::Passed, "Virtual-1 connected, 1280x800", &[]);
        let (expected, seen) = (format!("00{seed}-expected"), format!("00{seed}-card"));
        s.at(
            ms + 1200,
            frame(
                folder,
                &expected,
                "expected 01:00",
                "expected: painted in the guest",
                &pattern(seed, 1280, 800),
            ),
        );
        s.at(
            ms + 1200,
            frame(
                folder,
                &seen,
                "card 01:00",
                "seen: the card's own output, from outside",
                &pattern(seed, 1280, 800),
            ),
        );
        let files = [format!("frames/{expected}.png"), format!("frames/{seen}.png")];
        s.check(
            ms + 1200,
            "picture",
            round,
            Outcome::Passed,
            "the pattern painted in the guest is on the card's own output (1280x800, equal)",
            &[&files[0], &files[1]],
        );
    }
    s.phase(27_500, 59_000, "reboot", Some(180_000), None).phase(
        62_000,
        65_000,
        "shutdown",
        Some(90_000),
        None,
    );
    std::fs::create_dir_all(folder.join("logs")).unwrap();
    std::fs::write(folder.join("logs/serial.log"), "[    0.000000] Linux version 6.1.0-40-amd64\n[    8.1] bochs-drm 0000:01:00.0: vgaarb: deactivate vga console\n").unwrap();
    s.at(
        65_000,
        Event::LogAttached {
            file: "logs/serial.log".into(),
            title: "serial port of the guest".into(),
            bytes: 110,
            omitted: 0,
        },
    );
    s.phase(65_000, 66_000, "give back", None, None);
    s.check(
        66_000,
        "given back",
        Round::AfterRun,
        Outcome::Passed,
        "bochs-drm and snd_hda_intel have their devices again",
        &[],
    );
    s.section = Section::Control;
    s.at(67_000, card(Some("10de:2484"))).phase(68_000, 92_000, "agent", Some(180_000), None);
    s.check(
        92_000,
        "agent",
        Round::First,
        Outcome::Passed,
        "Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64",
        &[],
    );
    s.check(
        92_200,
        "present",
        Round::First,
        Outcome::Passed,
        "2 of 2 functions, 10de:2484 + 8086:2668, as on the host",
        &[],
    );
    s.at(93_000, Event::Check { result: red_driver() });
    s.check(
        99_000,
        "given back",
        Round::AfterRun,
        Outcome::Passed,
        "bochs-drm and snd_hda_intel have their devices again",
        &[],
    );
    s.at(99_000, Event::ControlEnded { fails_in: "driver".into(), as_it_must: true, line: LINE.into() });
    s.section = Section::Main;
    s.at(100_000, Event::Verdict { answer: Verdict::Passed })
        .at(100_000, Event::RunEnded { exit_code: 0, took_ms: 100_000 });
    s
}

const LINE: &str = "nouveau 0000:01:00.0: unknown chipset (00000000)";

fn red_driver() -> CheckResult {
    CheckResult {
        layer: String::new(),
        metrics: Vec::new(),
        check: "driver".into(),
        card: "01:00".into(),
        round: Round::First,
        answer: Outcome::Failed,
        expected: "a driver has the video function 0000:01:00.0".into(),
        seen: "no driver has 0000:01:00.0 (10de:2484)".into(),
        details: vec!["0000:01:00.0 10de:2484 (video): no driver".into()],
        guest_lines: vec![LINE.into()],
        evidence: Vec::new(),
        took_ms: 640,
    }
}

/// A failure with causes, a skip and a wrong picture.
fn failed(folder: &Path) -> Script {
    let mut s = Script::new();
    s.at(40, card(Some("10de:2484")));
    s.at(
        50,
        Event::Note {
            text: "KVM cannot run a guest here (kvm_pvm stops at pxor): TCG is used, 10 to 30 times slower"
                .into(),
            warning: true,
        },
    );
    s.phase(100, 24_000, "agent", Some(180_000), None);
    s.check(24_100, "present", Round::First, Outcome::Passed, "2 of 2 functions", &[]);
    s.at(25_000, Event::Check { result: red_driver() });
    s.check(
        25_000,
        "connector",
        Round::First,
        Outcome::Skipped { reason: "'driver' does not hold, so there is nothing to ask".into() },
        "not asked",
        &[],
    );
    s.at(
        25_500,
        frame(folder, "001-card", "card 01:00", "seen", &RgbImage::from_pixel(64, 48, Rgb([0, 0, 0]))),
    );
    s.check(
        26_000,
        "picture",
        Round::First,
        Outcome::Failed,
        "the output shows QEMU's placeholder (640x480): no driver has switched it on",
        &["frames/001-card.png"],
    );
    let cause = |cause: &str, speaks_for: &[&str], speaks_against: &[&str], fix: &str, likely| {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        Event::Diagnosis {
            cause: Finding {
                cause: cause.into(),
                speaks_for: own(speaks_for),
                speaks_against: own(speaks_against),
                fix: fix.into(),
                likely,
                ..Finding::default()
            },
        }
    };
    s.at(
        26_100,
        cause(
            "the driver in the guest does not know this card",
            &[LINE],
            &[],
            "remove present-as from [[card]]",
            true,
        ),
    );
    s.at(
        26_100,
        cause(
            "the guest has no driver for this card installed",
            &[],
            &[LINE],
            "guest.packages: add the driver",
            false,
        ),
    );
    s.check(
        28_000,
        "given back",
        Round::AfterRun,
        Outcome::Passed,
        "bochs-drm and snd_hda_intel have their devices again",
        &[],
    );
    let answer = Verdict::failed(
        FailureKind::Guest,
        format!("driver: no driver has 0000:01:00.0 (10de:2484); the guest says: {LINE}"),
    );
    s.at(28_500, Event::Verdict { answer }).at(28_500, Event::RunEnded { exit_code: 10, took_ms: 28_500 });
    s
}

fn terminal_of(script: &Script, folder: &Path) -> String {
    let run = script.write(folder);
    let mut out = Vec::new();
    terminal::replay(&run, terminal::Style::default(), &mut out);
    String::from_utf8(out).unwrap().replace(&folder.display().to_string(), "runs/2026-11-22-3f9c")
}

#[test]
fn the_terminal_shows_a_pass_on_one_screen() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(terminal_of(&passed(dir.path()), dir.path()), @"
    card     QEMU standard VGA  01:00 (video audio)  → VM, given back afterwards
    ✔ agent      Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    ✔ present    2 of 2 functions, 1234:1111 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host
    ✔ driver     bochs-drm
    ✔ connector  Virtual-1 connected, 1280x800
    ✔ picture    the pattern painted in the guest is on the card's own output (1280x800, equal)
    ✔ again      after reboot: agent, present, driver, connector, picture
    ✔ given back bochs-drm and snd_hda_intel have their devices again
    control  failed in 'driver' as it must (nouveau 0000:01:00.0: unknown chipset (00000000))
    PASSED in 1 min 40 s      report: runs/2026-11-22-3f9c/report.html
    ");
}

#[test]
fn the_terminal_shows_a_failure_with_its_causes() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(terminal_of(&failed(dir.path()), dir.path()), @"
    card     QEMU standard VGA  01:00 (video audio)  → VM, given back afterwards
    ! note       KVM cannot run a guest here (kvm_pvm stops at pxor): TCG is used, 10 to 30 times slower
    ✔ present    2 of 2 functions
    ✘ driver     no driver has 0000:01:00.0 (10de:2484)
        expected  a driver has the video function 0000:01:00.0
        guest     nouveau 0000:01:00.0: unknown chipset (00000000)
    – connector  skipped: 'driver' does not hold, so there is nothing to ask
    ✘ picture    the output shows QEMU's placeholder (640x480): no driver has switched it on
        expected  what 'picture' expects
        see       frames/001-card.png
        1  the driver in the guest does not know this card
           for: nouveau 0000:01:00.0: unknown chipset (00000000)   against: –
           fix   remove present-as from [[card]]
        2  the guest has no driver for this card installed
           for: –   against: nouveau 0000:01:00.0: unknown chipset (00000000)
           not likely
    ✔ given back bochs-drm and snd_hda_intel have their devices again
    FAILED (guest) in 28.5 s   exit code 10      report: runs/2026-11-22-3f9c/report.html
    ");
}

#[test]
fn the_terminal_says_that_a_run_died() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Script::new();
    script
        .at(40, card(None))
        .at(900, Event::PhaseStarted { phase: "agent".into(), limit_ms: None, note: String::new() });
    insta::assert_snapshot!(terminal_of(&script, dir.path()), @"
    card     QEMU standard VGA  01:00 (video audio)  → VM, given back afterwards
    ✘ run        no43 died silently in phase 'agent', 900 ms after its start; the next command that changes something gives its cards back
    FAILED (no43) in 900 ms   exit code 13      report: runs/2026-11-22-3f9c/report.html
    ");
}

#[test]
fn junit_of_a_pass_counts_a_red_control_as_green() {
    let dir = tempfile::tempdir().unwrap();
    let run = passed(dir.path()).write(dir.path());
    let xml = junit::render(&Model::of(&run), Path::new("runs/2026-11-22-3f9c")).unwrap();
    insta::assert_snapshot!(xml, @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="no43" tests="13" skipped="0" failures="0" errors="0" time="100.000">
        <testsuite name="no43.lab-guest" tests="13" skipped="0" errors="0" failures="0" time="100.000">
            <properties>
                <property name="run" value="2026-11-22-3f9c"/>
                <property name="no43" value="0.1.0"/>
                <property name="started" value="2026-11-22T17:05:09Z"/>
            </properties>
            <testcase name="agent" classname="no43.lab-guest" time="0.120">
                <system-out>Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    a detail of &apos;agent&apos;
    </system-out>
            </testcase>
            <testcase name="present" classname="no43.lab-guest" time="0.120">
                <system-out>2 of 2 functions, 1234:1111 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host
    a detail of &apos;present&apos;
    </system-out>
            </testcase>
            <testcase name="driver" classname="no43.lab-guest" time="0.120">
                <system-out>bochs-drm
    a detail of &apos;driver&apos;
    </system-out>
            </testcase>
            <testcase name="connector" classname="no43.lab-guest" time="0.120">
                <system-out>Virtual-1 connected, 1280x800
    a detail of &apos;connector&apos;
    </system-out>
            </testcase>
            <testcase name="picture" classname="no43.lab-guest" time="0.120">
                <system-out>the pattern painted in the guest is on the card&apos;s own output (1280x800, equal)
    a detail of &apos;picture&apos;
    [[ATTACHMENT|runs/2026-11-22-3f9c/frames/001-expected.png]]
    [[ATTACHMENT|runs/2026-11-22-3f9c/frames/001-card.png]]
    </system-out>
            </testcase>
            <testcase name="agent again after reboot" classname="no43.lab-guest" time="0.120">
                <system-out>Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    a detail of &apos;agent&apos;
    </system-out>
            </testcase>
            <testcase name="present again after reboot" classname="no43.lab-guest" time="0.120">
                <system-out>2 of 2 functions, 1234:1111 + 8086:2668, BAR0 16 MiB, BAR2 4 KiB + BAR0 16 KiB, as on the host
    a detail of &apos;present&apos;
    </system-out>
            </testcase>
            <testcase name="driver again after reboot" classname="no43.lab-guest" time="0.120">
                <system-out>bochs-drm
    a detail of &apos;driver&apos;
    </system-out>
            </testcase>
            <testcase name="connector again after reboot" classname="no43.lab-guest" time="0.120">
                <system-out>Virtual-1 connected, 1280x800
    a detail of &apos;connector&apos;
    </system-out>
            </testcase>
            <testcase name="picture again after reboot" classname="no43.lab-guest" time="0.120">
                <system-out>the pattern painted in the guest is on the card&apos;s own output (1280x800, equal)
    a detail of &apos;picture&apos;
    [[ATTACHMENT|runs/2026-11-22-3f9c/frames/002-expected.png]]
    [[ATTACHMENT|runs/2026-11-22-3f9c/frames/002-card.png]]
    </system-out>
            </testcase>
            <testcase name="given back" classname="no43.lab-guest" time="0.120">
                <system-out>bochs-drm and snd_hda_intel have their devices again
    a detail of &apos;given back&apos;
    </system-out>
            </testcase>
            <testcase name="control fails as it must" classname="no43.lab-guest">
                <system-out>fails in: driver
    nouveau 0000:01:00.0: unknown chipset (00000000)
    agent: Debian GNU/Linux 12 (bookworm), 6.1.0-40-amd64
    present: 2 of 2 functions, 10de:2484 + 8086:2668, as on the host
    driver: no driver has 0000:01:00.0 (10de:2484)
    given back: bochs-drm and snd_hda_intel have their devices again
    </system-out>
            </testcase>
            <testcase name="run" classname="no43.lab-guest" time="100.000">
                <system-out>PASSED in 1 min 40 s
    [[ATTACHMENT|runs/2026-11-22-3f9c/logs/serial.log]]
    [[ATTACHMENT|runs/2026-11-22-3f9c/report.html]]
    </system-out>
            </testcase>
        </testsuite>
    </testsuites>
    "#);
}

#[test]
fn junit_of_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let run = failed(dir.path()).write(dir.path());
    let xml = junit::render(&Model::of(&run), Path::new("runs/2026-11-22-3f9c")).unwrap();
    insta::assert_snapshot!(xml, @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="no43" tests="6" skipped="1" failures="3" errors="0" time="28.500">
        <testsuite name="no43.lab-guest" tests="6" skipped="1" errors="0" failures="3" time="28.500">
            <properties>
                <property name="run" value="2026-11-22-3f9c"/>
                <property name="no43" value="0.1.0"/>
                <property name="started" value="2026-11-22T17:05:09Z"/>
            </properties>
            <testcase name="present" classname="no43.lab-guest" time="0.120">
                <system-out>2 of 2 functions
    a detail of &apos;present&apos;
    </system-out>
            </testcase>
            <testcase name="driver" classname="no43.lab-guest" time="0.640">
                <failure message="no driver has 0000:01:00.0 (10de:2484)" type="driver">expected: a driver has the video function 0000:01:00.0
    seen:     no driver has 0000:01:00.0 (10de:2484)
    guest:    nouveau 0000:01:00.0: unknown chipset (00000000)
    </failure>
                <system-out>0000:01:00.0 10de:2484 (video): no driver
    </system-out>
            </testcase>
            <testcase name="connector" classname="no43.lab-guest" time="0.120">
                <skipped message="&apos;driver&apos; does not hold, so there is nothing to ask"/>
                <system-out>a detail of &apos;connector&apos;
    </system-out>
            </testcase>
            <testcase name="picture" classname="no43.lab-guest" time="0.120">
                <failure message="the output shows QEMU&apos;s placeholder (640x480): no driver has switched it on" type="picture">expected: what &apos;picture&apos; expects
    seen:     the output shows QEMU&apos;s placeholder (640x480): no driver has switched it on
    </failure>
                <system-out>a detail of &apos;picture&apos;
    [[ATTACHMENT|runs/2026-11-22-3f9c/frames/001-card.png]]
    </system-out>
            </testcase>
            <testcase name="given back" classname="no43.lab-guest" time="0.120">
                <system-out>bochs-drm and snd_hda_intel have their devices again
    a detail of &apos;given back&apos;
    </system-out>
            </testcase>
            <testcase name="run" classname="no43.lab-guest" time="28.500">
                <failure message="driver: no driver has 0000:01:00.0 (10de:2484); the guest says: nouveau 0000:01:00.0: unknown chipset (00000000)" type="guest"/>
                <system-out>FAILED (guest) in 28.5 s
    cause: the driver in the guest does not know this card
    fix: remove present-as from [[card]]
    [[ATTACHMENT|runs/2026-11-22-3f9c/report.html]]
    </system-out>
            </testcase>
        </testsuite>
    </testsuites>
    "#);
}

#[test]
fn the_page_is_one_file_with_its_pictures() {
    let dir = tempfile::tempdir().unwrap();
    for (name, script) in [("passed", passed(dir.path())), ("failed", failed(dir.path()))] {
        script.write(dir.path());
        let files = write(dir.path()).unwrap();
        let page = std::fs::read_to_string(&files.html).unwrap();
        assert!(page.contains("data:image/png;base64,"), "{name}");
        assert!(
            !page.contains("<script") && !page.contains("http://") && !page.contains("https://"),
            "{name}: needs nothing from outside"
        );
        if let Some(keep) = std::env::var_os("NO43_KEEP_SAMPLES") {
            std::fs::write(Path::new(&keep).join(format!("{name}.html")), page).unwrap();
        }
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&files.json).unwrap()).unwrap();
        assert_eq!(json["recipe"], "lab-guest");
    }
}

#[test]
fn a_file_name_from_an_edited_event_file_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    std::fs::write(dir.path().join("secret.png"), "secret").unwrap();
    let mut script = Script::new();
    for file in ["frames/../../secret.png", "../secret.png", "/etc/passwd"] {
        script.at(
            1,
            Event::FrameAdded {
                frame: Frame {
                    file: file.into(),
                    source: "screen".into(),
                    width: 1,
                    height: 1,
                    caption: String::new(),
                },
            },
        );
        script.at(1, Event::LogAttached { file: file.into(), title: "log".into(), bytes: 1, omitted: 0 });
    }
    script.write(&folder);
    let page = std::fs::read_to_string(write(&folder).unwrap().html).unwrap();
    assert!(!page.contains("c2VjcmV0") && !page.contains("root:x") && !page.contains(">secret"), "{page}");
}

/// Every foreign string of a run replaced by `text`, as the checks and logs of a hostile guest would give it.
fn hostile(text: &str, folder: &Path) -> Run {
    let text = &format!("a{text}"); // an empty string leaves out whole lines
    let clean = crate::words::clean(text);
    let mut s = Script::new();
    s.at(
        1,
        Event::Card {
            card: CardFacts {
                name: clean.clone(),
                slot: "01:00".into(),
                roles: vec![clean.clone()],
                facts: vec![Fact::new("x", text)],
                stays: false,
            },
        },
    );
    let mut result = red_driver();
    (result.seen, result.details, result.guest_lines) =
        (clean.clone(), vec![clean.clone()], vec![clean.clone()]);
    s.at(2, Event::Check { result });
    s.at(3, Event::Note { text: clean.clone(), warning: true });
    std::fs::create_dir_all(folder.join("logs")).unwrap();
    std::fs::write(folder.join("logs/serial.log"), text).unwrap();
    s.at(
        4,
        Event::LogAttached { file: "logs/serial.log".into(), title: clean.clone(), bytes: 1, omitted: 0 },
    );
    s.at(5, Event::Verdict { answer: Verdict::failed(FailureKind::Guest, clean) });
    s.write(folder)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_string_of_the_guest_breaks_a_report(text in "(?s).{0,60}|[<>&\"'\\]\\[{}|%#\u{0}-\u{1f}\u{7f}-\u{9f}a]{0,40}") {
        let dir = tempfile::tempdir().unwrap();
        let run = hostile(&text, dir.path());
        prop_assert_eq!(run.unreadable, 0);
        let model = Model::of(&run);
        let xml = junit::render(&model, Path::new("runs/x")).unwrap();
        let report = quick_junit::Report::deserialize_from_str(&xml);
        prop_assert!(report.is_ok(), "{:?}", report);
        prop_assert!(!xml.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')));
        let page = html::render(&model, dir.path()).unwrap();
        let quiet = html::render(&Model::of(&hostile("a", dir.path())), dir.path()).unwrap();
        prop_assert_eq!(tags(&page), tags(&quiet));
        let mut out = Vec::new();
        terminal::replay(&run, terminal::Style::default(), &mut out);
        prop_assert!(!String::from_utf8_lossy(&out).chars().any(|c| c.is_control() && c != '\n'));
        serde_json::from_slice::<serde_json::Value>(&serde_json::to_vec(&model).unwrap()).unwrap();
    }
}

/// How many tags of each name a page has: a string that opened or closed one would change it.
fn tags(page: &str) -> std::collections::BTreeMap<String, usize> {
    let mut tags = std::collections::BTreeMap::new();
    for part in page.split('<').skip(1) {
        *tags
            .entry(
                part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '/' || c == '!'))
                    .next()
                    .unwrap_or("")
                    .to_owned(),
            )
            .or_default() += 1;
    }
    tags
}
