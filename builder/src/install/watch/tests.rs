//! Courses of installations as scripts: what is seen, second by second, and what follows.

use no43_guest::setup::event::LogTail;

use super::*;

const STARTING: &str = r#"BdsDxe: starting Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0)"#;
const TIMED_OUT: &str = r#"BdsDxe: failed to start Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0): Time out"#;
const DENIED: &str = r#"BdsDxe: failed to load Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0): Access Denied"#;

/// A course with the time that it has reached.
struct Course {
    watch: Watch,
    now: Duration,
    said: Vec<String>,
}

impl Course {
    fn new() -> Self {
        Self { watch: Watch::new(Limits::default()), now: Duration::ZERO, said: Vec::new() }
    }

    fn see(&mut self, after_ms: u64, seen: Seen) -> &mut Self {
        self.now += Duration::from_millis(after_ms);
        for act in self.watch.see(seen, self.now) {
            self.said.push(match act {
                Act::Fail(verdict) => {
                    format!("{}: {:?}: {}", verdict.phase.name(), verdict.cause, verdict.seen[0])
                }
                other => format!("{other:?}"),
            });
        }
        self
    }

    fn line(&mut self, line: &str) -> &mut Self {
        self.see(100, Seen::Line(line.to_owned()))
    }

    fn medium(&mut self, mib: u64) -> &mut Self {
        self.see(500, Seen::Blocks(Blocks { medium: mib << 20, setup_disk: 2 << 20, ..Blocks::default() }))
    }

    fn guest(&mut self, what: What) -> &mut Self {
        self.see(1000, Seen::Guest(Event { run: 1, seq: 1, at_ms: 0, what }))
    }

    fn started(&mut self) -> &mut Self {
        self.guest(What::Started { plan: "p".into(), program: "0.1.0".into(), actions: 1, from: 0 })
    }

    fn finished(&mut self, state: Option<&str>) -> &mut Self {
        let image_state = state.map(str::to_owned);
        self.guest(What::Finished { ms: 1, restarts: 0, refused: 0, image_state })
    }

    fn said(&mut self) -> String {
        std::mem::take(&mut self.said).join("\n")
    }

    /// Up to the first restart.
    fn copied() -> Self {
        let mut course = Self::new();
        course.line(STARTING).medium(0).medium(40).see(9000, Seen::Reset);
        course.said();
        course
    }
}

#[test]
fn a_whole_installation() {
    let mut course = Course::new();
    course.line("BdsDxe: loading Boot0002").line(STARTING).medium(0).medium(1).medium(40);
    course.see(9000, Seen::Reset).see(9000, Seen::Reset).started();
    course.guest(What::Begun { action: 0, name: "agent".into() });
    course.guest(What::Restarting { action: 1, reason: "agent".into() }).see(500, Seen::Reset).started();
    course.finished(Some("IMAGE_STATE_COMPLETE")).see(100, Seen::AgentAnswers);
    course.see(4000, Seen::Ended { orderly: true, how: String::new() });
    insta::assert_snapshot!(course.said(), @r#"
    Phase(BootPrompt)
    PressKey
    PressKey
    PressKey
    Phase(Copying)
    Phase(Specialize)
    Phase(Oobe)
    Phase(FirstLogon)
    Say("set-up action 1: agent")
    Say("restart: agent")
    Phase(Agent)
    AskAgent
    Phase(Seal)
    ShutDown
    Done
    "#);
    let times: Vec<_> = course.watch.times().iter().map(|time| (time.phase.name(), time.ms)).collect();
    insta::assert_debug_snapshot!(times, @r#"
    [
        (
            "firmware",
            200,
        ),
        (
            "boot prompt",
            1500,
        ),
        (
            "copying files",
            9000,
        ),
        (
            "specialize",
            9000,
        ),
        (
            "oobe",
            1000,
        ),
        (
            "first logon",
            4500,
        ),
        (
            "agent",
            100,
        ),
        (
            "seal",
            4000,
        ),
    ]
    "#);
}

#[test]
fn keys_end_with_the_prompt_and_never_come_back() {
    let mut course = Course::new();
    course.line(STARTING);
    for _ in 0..6 {
        course.see(250, Seen::Tick);
    }
    assert_eq!(course.said().matches("PressKey").count(), 4, "one at once, then one per 500 ms");
    course.line(TIMED_OUT);
    insta::assert_snapshot!(course.said(), @r#"boot prompt: NoBootKey: the firmware says: BdsDxe: failed to start Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0): Time out"#);
    course.line("Press any key to enter the Boot Manager Menu").see(600, Seen::Tick);
    assert_eq!(course.said(), "", "the firmware's own prompt is none");
}

#[test]
fn a_refused_medium_is_no_missing_key() {
    let mut course = Course::new();
    course.line(DENIED).line("Press any key to enter the Boot Manager Menu");
    insta::assert_snapshot!(course.said(), @r#"firmware: SecureBoot: the firmware says: BdsDxe: failed to load Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0): Access Denied"#);
}

#[test]
fn where_com1_is_mute_the_picture_starts_the_keys() {
    let mut course = Course::new();
    course.see(1000, Seen::Screen(1)).see(1000, Seen::Screen(1));
    assert_eq!(course.said(), "");
    course.see(1000, Seen::Screen(2));
    assert_eq!(course.said(), "PressKey");
    course.medium(40);
    assert_eq!(course.said(), "Phase(BootPrompt)\nPhase(Copying)");
}

#[test]
fn a_picture_before_the_firmware_speaks_is_no_prompt_yet() {
    let mut course = Course::new();
    course.see(1000, Seen::Screen(1)).see(1000, Seen::Screen(2)).line(DENIED);
    assert!(course.said().contains("firmware: SecureBoot"));
    let mut course = Course::new();
    course
        .see(1000, Seen::Screen(1))
        .see(1000, Seen::Screen(2))
        .see(20_000, Seen::Tick)
        .line(STARTING)
        .line(TIMED_OUT);
    assert!(course.said().contains("boot prompt: NoBootKey"));
}

#[test]
fn a_target_that_does_not_start_is_named_at_once_and_no_key_is_pressed() {
    let mut course = Course::copied();
    course.line(STARTING).see(5000, Seen::Tick);
    insta::assert_snapshot!(course.said(), @r#"specialize: TargetNotBootable: after the first restart the firmware says: BdsDxe: starting Boot0002 "UEFI QEMU DVD-ROM no43-media " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0)"#);
}

#[test]
fn a_boot_loop_is_counted() {
    let mut course = Course::copied();
    for _ in 0..6 {
        course.see(9000, Seen::Reset);
    }
    insta::assert_snapshot!(course.said(), @r#"
    Phase(Oobe)
    Say("restart 3 that nobody announced")
    Say("restart 4 that nobody announced")
    Say("restart 5 that nobody announced")
    Say("restart 6 that nobody announced")
    Say("restart 7 that nobody announced")
    oobe: BootLoop: 7 restarts that nobody announced
    "#);
}

#[test]
fn restarts_that_the_program_announced_do_not_count_and_others_are_an_update() {
    let mut course = Course::copied();
    course.see(9000, Seen::Reset).started();
    for n in 0..20 {
        course.guest(What::Restarting { action: n, reason: "x".into() }).see(500, Seen::Reset).started();
    }
    assert!(!course.said().contains("Fail"));
    for _ in 0..4 {
        course.see(9000, Seen::Reset).started();
    }
    let said = course.said();
    assert!(said.ends_with("first logon: UpdateTookOver: 6 restarts that nobody announced"), "{said}");
}

#[test]
fn setup_logs_name_the_cause() {
    let mut course = Course::new();
    course.line(STARTING).medium(40);
    course.said();
    let lines = vec!["Error IBS  no storage controller driver loaded".to_owned()];
    course.guest(What::SetupFailed { logs: vec![LogTail { file: "setuperr.log".into(), lines }] });
    insta::assert_snapshot!(course.said(), @"copying files: NoTargetDisk: setuperr.log: Error IBS  no storage controller driver loaded");
}

#[test]
fn an_error_in_the_log_of_a_setup_that_stands_still_is_the_cause_and_soon() {
    let log = |text: &str| What::SetupLog {
        file: r"X:\Windows\Panther\setupact.log".into(),
        lines: vec![format!("2026-11-22 20:00:09, Error   IBS  {text}")],
    };
    let mut course = Course::new();
    course.line(STARTING).medium(40);
    course.said();
    course.guest(log("language fr-FR is not available"));
    for _ in 0..60 {
        course.see(1000, Seen::Tick);
    }
    insta::assert_snapshot!(course.said(), @r"copying files: Language: X:\Windows\Panther\setupact.log: 2026-11-22 20:00:09, Error   IBS  language fr-FR is not available");
    // a Setup that goes on was not stopped by it
    let mut course = Course::new();
    course.line(STARTING).medium(40);
    course.guest(log("0x80070070 while a log was written")).see(9000, Seen::Reset).see(9000, Seen::Reset);
    assert!(!course.said().contains("DiskFull"), "it went on");
}

#[test]
fn a_guest_program_that_dies_by_restarts_of_others_is_an_update() {
    let mut course = Course::copied();
    course.see(9000, Seen::Reset).started();
    for _ in 0..3 {
        course.see(9000, Seen::Reset).started();
    }
    course.said();
    course.guest(What::Failed {
        action: Some(0),
        name: "driver".into(),
        cause: GuestCause::KeepsDying,
        code: None,
        text: "the guest died 3 times in this action".into(),
        log: Vec::new(),
    });
    insta::assert_snapshot!(course.said(), @"first logon: UpdateTookOver: 'driver': the guest died 3 times in this action");
}

#[test]
fn stillness_is_seen_long_before_the_phase_is_over() {
    let mut course = Course::new();
    course.line(STARTING).medium(40);
    course.said();
    for second in 0..400 {
        course.see(1000, Seen::Screen(second % 2)); // a cursor blinks
    }
    insta::assert_snapshot!(course.said(), @"copying files: Still: nothing changed for 180 s while the first restart was awaited");
}

#[test]
fn what_works_for_too_long_is_not_still() {
    let mut course = Course::copied();
    for second in 0..2000 {
        course.see(1000, Seen::Screen(second));
    }
    insta::assert_snapshot!(course.said(), @"specialize: TooSlow: the second restart was awaited for 1200 s");
}

#[test]
fn an_unfinished_windows_is_not_sealed() {
    let mut course = Course::copied();
    course.see(9000, Seen::Reset).started();
    course.said();
    course.finished(Some("IMAGE_STATE_UNDEPLOYABLE"));
    insta::assert_snapshot!(course.said(), @"first logon: ImageState: ImageState is IMAGE_STATE_UNDEPLOYABLE");
}

#[test]
fn a_silent_agent_and_a_machine_that_goes() {
    let mut course = Course::copied();
    course.see(9000, Seen::Reset).started().finished(None);
    course.said();
    course.see(301_000, Seen::Tick);
    insta::assert_snapshot!(course.said(), @"agent: AgentSilent: the guest agent to answer was awaited for 301 s");
    let mut course = Course::copied();
    course.see(1000, Seen::Ended { orderly: true, how: "guest-shutdown".into() });
    insta::assert_snapshot!(course.said(), @"specialize: SwitchedOff: guest-shutdown");
}
