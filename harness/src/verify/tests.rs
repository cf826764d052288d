//! Whole runs as far as they need no card: what a plan becomes, refusals, and a real machine whose guest never answers.

use super::run::{Ended, Failure, planned_facts};
use super::spec::{Borrowed, Scratch, machine_spec, subjects};
use super::*;
use crate::diagnosis::Facts;
use crate::evidence::read::{Run, State};
use crate::evidence::{Outcome, Record};
use no43_builder::image::{BootKind, Manifest, Provenance};
use no43_builder::key::Key;
use no43_builder::plan::{
    Boot, CardFunctions, CardRequest, CardWish, ChecksPlan, Console, DisplayPlan, Firmware, GuestPlan, Init,
    MachinePlan, NetworkPlan,
};
use no43_host::inventory::{Bar, BarKind, Function, IommuFacts};
use no43_host::{Card, CardState, Inventory, PciAddress, Role};
use no43_machine::{Accel, RunDirs};
use std::path::Path;

pub(crate) fn plan(cards: Vec<CardWish>) -> Plan {
    Plan {
        name: "lab-guest".into(),
        recipe_file: "lab-guest.toml".into(),
        guest: GuestPlan {
            os: "debian12".into(),
            init: Init::Lean,
            user: None,
            hostname: None,
            product_key: None,
            parsec_team: None,
        },
        layers: Vec::new(),
        machine: MachinePlan {
            cpus: 1,
            memory_mib: 256,
            disk_bytes: 1 << 30,
            firmware: Firmware::Bios,
            boot: Boot::Direct,
            uefi_under_lab: false,
            hugepages: false,
            hidden: false,
            identity: no43_builder::plan::IdentityKind::Own,
        },
        cards,
        driver: no43_builder::plan::DriverPlan::default(),
        checks: ChecksPlan {
            card: true,
            driver: true,
            connector: true,
            picture: true,
            work: None,
            driver_version: None,
            skip: std::collections::BTreeMap::new(),
            own: Vec::new(),
            quiet: false,
            lifecycle: Vec::new(),
            ready_limit: 2,
        },
        display: DisplayPlan { console: Console::Always },
        network: NetworkPlan::None,
        devices: Default::default(),
        notes: Vec::new(),
    }
}

fn wish(present_as: Option<&str>) -> CardWish {
    CardWish {
        request: CardRequest { address: Some("01:00".into()), id: None, model: None, any: false, count: 1 },
        functions: CardFunctions::All,
        present_as: present_as.map(Into::into),
        here: None,
    }
}

fn image(dir: &Path) -> Image {
    let manifest = Manifest {
        format: 1,
        key: Key::of(None, &serde_json::Value::Null),
        parent: None,
        layer: "base".into(),
        recipe: "lab-guest".into(),
        inputs: serde_json::Value::Null,
        boot: BootKind::Disk,
        sealed: None,
        provenance: Provenance::default(),
        files: Vec::new(),
    };
    Image { dir: dir.to_owned(), manifest }
}

fn function(address: &str, id: &str, class: u32, bars: &[(u8, u64)]) -> Function {
    let bar = |&(index, size): &(u8, u64)| Bar { index, size, kind: BarKind::Memory32, prefetchable: false };
    Function {
        address: address.parse().unwrap(),
        id: id.parse().unwrap(),
        subsystem: None,
        class,
        driver: None,
        group: Some(13),
        bridges: Vec::new(),
        name: None,
        detailed: true,
        revision: None,
        boot_vga: None,
        bars: bars.iter().map(bar).collect(),
        link: None,
        reset_methods: None,
        numa_node: None,
        driver_override: None,
    }
}

fn lab_card() -> (Card, Inventory) {
    let functions = vec![
        function("01:00.0", "1234:1111", 0x03_8000, &[(0, 16 << 20), (2, 4096), (6, 65536)]),
        function("01:00.1", "8086:2668", 0x04_0300, &[(0, 16384)]),
    ];
    let addresses: Vec<PciAddress> = functions.iter().map(|f| f.address).collect();
    let card = Card {
        name: "QEMU standard VGA".into(),
        address: addresses[0],
        id: functions[0].id,
        functions: addresses,
        roles: vec![Role::Video, Role::Audio],
        groups: vec![13],
        driver: None,
        isolated: true,
        viable: true,
        neighbours: Vec::new(),
        state: CardState::Ready,
    };
    (card, Inventory { functions, iommu: IommuFacts::default() })
}

#[test]
fn a_control_shows_other_ids_on_the_video_function_only() {
    let (card, inventory) = lab_card();
    let borrowed = [Borrowed::new(card, &CardFunctions::All, Some("10de:2484")).unwrap()];
    let dir = Path::new("/tmp/no43-x");
    let spec = machine_spec(
        &plan(vec![wish(Some("10de:2484"))]),
        image(dir).direct_kernel(),
        &borrowed,
        Accel::Kvm,
        &Scratch::at(dir),
        None,
    )
    .unwrap();
    let argv = spec.argv(&RunDirs::at("/tmp/no43-x/m")).join("\n");
    let passed: Vec<&str> = argv.lines().filter(|line| line.starts_with("vfio-pci")).collect();
    assert_eq!(passed.len(), 2, "{argv}");
    assert!(
        passed[0].contains("host=0000:01:00.0")
            && passed[0].contains("0x10de")
            && passed[0].contains("0x2484"),
        "{passed:?}"
    );
    assert!(passed[1].contains("host=0000:01:00.1") && !passed[1].contains("0x10de"), "{passed:?}");
    let subjects = subjects(&spec, &borrowed, &inventory).unwrap();
    let shown: Vec<String> = subjects[0]
        .functions
        .iter()
        .map(|f| format!("{} {} → {} {} {:?}", f.host, f.id, f.guest, f.shown_as, f.bars))
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @"
    0000:01:00.0 1234:1111 → 0000:01:00.0 10de:2484 [(0, 16777216), (2, 4096), (6, 65536)]
    0000:01:00.1 8086:2668 → 0000:01:00.1 8086:2668 [(0, 16384)]
    ");
}

fn result(check: &str, answer: Outcome) -> CheckResult {
    let round = if check == "given back" { Round::AfterRun } else { Round::First };
    let card = if matches!(check, "agent" | "given back") { "" } else { "01:00" };
    CheckResult {
        layer: String::new(),
        metrics: Vec::new(),
        check: check.into(),
        card: card.into(),
        round,
        answer,
        expected: String::new(),
        seen: format!("what '{check}' saw"),
        details: Vec::new(),
        guest_lines: if check == "driver" { vec!["nouveau: unknown chipset".into()] } else { Vec::new() },
        evidence: Vec::new(),
        took_ms: 0,
    }
}

fn skipped() -> Outcome {
    Outcome::Skipped { reason: "no eye".into() }
}

#[test]
fn a_control_counts_only_if_everything_before_its_check_is_green() {
    let ended = |results: Vec<CheckResult>, failure: Option<Failure>| {
        judge_control(&Ended { results, failure, unstable: None }, "driver")
    };
    let good = |name| result(name, Outcome::Passed);
    let bad = |name| result(name, Outcome::Failed);
    let failure = |place| Some(Failure::new(place, FailureKind::Guest, "x"));
    assert_eq!(
        ended(
            vec![good("agent"), good("present"), bad("driver"), result("connector", skipped())],
            failure("driver")
        ),
        (true, "nouveau: unknown chipset".into())
    );
    let consequence = vec![good("agent"), bad("driver"), bad("quiet"), good("given back")];
    assert!(ended(consequence, failure("driver")).0);
    assert_eq!(
        ended(vec![good("agent"), bad("present"), bad("driver")], failure("present")).1,
        "'present' failed before 'driver': what 'present' saw"
    );
    assert_eq!(ended(vec![good("driver")], None).1, "every check passed, and 'driver' had to fail");
    assert_eq!(ended(vec![], failure("agent")).1, "it broke before any check failed: x");
    assert_eq!(
        ended(vec![bad("driver"), bad("given back")], failure("driver")).1,
        "the host did not get everything back: what 'given back' saw"
    );
}

#[test]
fn a_run_that_proved_nothing_has_not_passed() {
    let verdict = |results: Vec<CheckResult>| Ended { results, ..Ended::default() }.verdict().headline();
    assert_eq!(
        verdict(vec![result("agent", Outcome::Passed), result("given back", Outcome::Passed)]),
        "SKIPPED"
    );
    assert_eq!(verdict(vec![result("agent", Outcome::Passed), result("picture", skipped())]), "SKIPPED");
    assert_eq!(verdict(vec![result("driver", Outcome::Passed), result("picture", skipped())]), "PASSED");
}

#[test]
fn what_was_right_and_then_was_not_is_unstable_unless_the_host_is_to_blame() {
    let unstable = Some("right 3 times, then not after power cycle 3 of 50".to_owned());
    let ended = |kind| Ended {
        failure: Some(Failure::new("driver", kind, "driver: no driver has 01:00.0")),
        unstable: unstable.clone(),
        ..Ended::default()
    };
    let verdict = ended(FailureKind::Guest).verdict();
    assert_eq!(verdict.headline(), "UNSTABLE");
    assert_eq!(
        verdict.reason(),
        "right 3 times, then not after power cycle 3 of 50: driver: no driver has 01:00.0"
    );
    assert_eq!(ended(FailureKind::Host).verdict().headline(), "FAILED (host)");
}

#[test]
fn a_hidden_hypervisor_is_a_fact_for_the_causes() {
    let mut plan = plan(Vec::new());
    assert_eq!(planned_facts(&plan, &[]).get("machine.hypervisor-hidden"), ["no"]);
    plan.machine.hidden = true;
    assert_eq!(planned_facts(&plan, &[]).get("machine.hypervisor-hidden"), ["yes"]);
}

#[test]
fn what_the_recipe_says_of_drivers_is_a_fact_for_the_causes() {
    let (card, _) = lab_card();
    let borrowed = [Borrowed::new(card, &CardFunctions::All, Some("10de:2484")).unwrap()];
    let mut plan = plan(Vec::new());
    assert!(!planned_facts(&plan, &borrowed).knows("recipe.updates-driver"), "a Debian asks nobody");
    plan.guest.os = "windows11".into();
    plan.driver.listed.insert("10de:2484".into(), "not listed".into());
    let facts = planned_facts(&plan, &borrowed);
    assert_eq!(facts.get("recipe.updates-driver"), ["free"]);
    assert_eq!(facts.get("guest.inf-match"), ["not listed"]);
    plan.driver.keep = true;
    assert_eq!(planned_facts(&plan, &borrowed).get("recipe.updates-driver"), ["ours"]);
}

/// Options for a host that has no card at all, with everything in a folder of the test.
pub(super) fn options(dir: &Path) -> VerifyOptions {
    std::fs::create_dir_all(dir.join("sys/bus/pci/devices")).unwrap();
    VerifyOptions {
        keep: None,
        runs: dir.join("runs"),
        scratch: None,
        roots: Roots::under(dir),
        state: StateDir::at(&dir.join("state")),
        privilege: Privilege::None,
        qemu: "qemu-system-x86_64".into(),
        run_as: None,
        required: Vec::new(),
        lab_share: dir.join("share"),
        control: None,
        choice: Choice::default(),
        cycles: 0,
    }
}

/// Runs it and reads the folder back.
fn run(plan: &Plan, options: &VerifyOptions, image: &Image) -> (Verdict, Run) {
    let mut folder = None;
    struct Watch<'a>(&'a mut Option<PathBuf>);
    impl Sink for Watch<'_> {
        fn event(&mut self, _: &Record) {}
        fn folder(&mut self, path: &Path) {
            *self.0 = Some(path.to_owned());
        }
    }
    let answer = verify(plan, image, options, &Stop::new(), &mut Watch(&mut folder));
    (answer, Run::open(&folder.expect("the folder should be named")).unwrap())
}

#[test]
fn a_card_that_is_not_there_is_no_failure_of_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let (answer, run) = run(&plan(vec![wish(None)]), &options(dir.path()), &image(dir.path()));
    assert!(matches!(answer, Verdict::Failed { kind: FailureKind::NotLent, .. }), "{answer:?}");
    assert!(answer.reason().contains("address 01:00.0"), "{answer:?}");
    assert!(
        matches!(run.state, State::Finished(ref ended) if ended.exit_code == crate::exit_codes::NOT_LENT)
    );
    assert!(run.path.join("report.html").exists() && run.path.join("junit.xml").exists());
    let facts = crate::diagnosis::facts_of_run(&run);
    assert_eq!(facts.get("run.failed"), ["lease"]);
    assert!(facts.get("qemu.says")[0].contains("address 01:00.0"), "{facts:?}");
}

#[test]
fn a_password_that_cannot_be_read_is_said_before_a_card_is_looked_for() {
    use no43_builder::plan::{SecretSource, Session, UserPlan};
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(vec![wish(None)]);
    plan.guest.os = "windows10".into();
    let password = Some(SecretSource::File(dir.path().join("password")));
    plan.guest.user = Some(UserPlan { name: "player".into(), password });
    plan.checks.own.push(crate::checks::own_check_for_tests("looks", Session::User));
    let (answer, ended) = run(&plan, &options(dir.path()), &image(dir.path()));
    assert!(matches!(answer, Verdict::Failed { kind: FailureKind::HostSetup, .. }), "{answer:?}");
    assert!(answer.reason().contains(&dir.path().join("password").display().to_string()), "{answer:?}");
    assert_eq!(crate::diagnosis::facts_of_run(&ended).get("run.failed"), ["log on"]);
    // nobody is to be logged on for what is not asked
    let choice = Choice { only: vec!["driver".into()], skip: Vec::new() };
    let options = VerifyOptions { choice, ..options(dir.path()) };
    let (answer, _) = run(&plan, &options, &image(dir.path()));
    assert!(matches!(answer, Verdict::Failed { kind: FailureKind::NotLent, .. }), "{answer:?}");
}

#[test]
fn an_unknown_control_check_is_named_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let control = Some(Control { plan: plan(Vec::new()), image: image.clone(), fails_in: "drvier".into() });
    let (answer, _) = run(&plan(Vec::new()), &VerifyOptions { control, ..options(dir.path()) }, &image);
    assert!(
        answer.reason().contains("no check is called 'drvier'; there are: agent, present, no code, driver"),
        "{answer:?}"
    );
}

/// A real QEMU with an empty disk: the guest never answers.
#[test]
fn a_guest_whose_agent_never_answers() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(image.disk())
        .arg("16M")
        .status();
    if !made.is_ok_and(|status| status.success())
        || std::process::Command::new("qemu-system-x86_64").arg("--version").output().is_err()
    {
        eprintln!("skipped: no QEMU on this host (packages qemu-system-x86 and qemu-utils)");
        return;
    }
    let (answer, run) = run(&plan(Vec::new()), &options(dir.path()), &image);
    let reason = answer.reason();
    assert!(reason.starts_with("the guest's agent did not answer within 2 s; its serial port"), "{answer:?}");
    assert!(reason.contains("last screen: frames/") && reason.ends_with("-screen.png"), "{reason}");
    let model = report::Model::of(&run);
    let phases: Vec<&str> = model.main.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(phases, ["lease", "disk", "start", "agent", "shutdown", "give back"]);
    assert!(model.main.phases.iter().all(|p| p.took_ms.is_some()));
    let facts = crate::diagnosis::facts_of_run(&run);
    assert!(facts.get("qemu.version")[0].contains('.') && facts.knows("machine.accelerator"), "{facts:?}");
    assert_eq!(
        model.main.causes.first().map(|c| c.cause.as_str()),
        Some("the guest is still starting: without KVM everything takes 10 to 30 times as long")
    );
}

/// A QEMU that dies at once: its own words are the cause.
#[test]
fn qemu_dying_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    if !std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(image.disk())
        .arg("16M")
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("skipped: no qemu-img on this host (package qemu-utils)");
        return;
    }
    let fake = dir.path().join("qemu");
    std::fs::write(&fake, "#!/bin/sh\necho 'qemu: vfio 0000:01:00.0: failed to open group: Device or resource busy' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (answer, run) = run(&plan(Vec::new()), &VerifyOptions { qemu: fake, ..options(dir.path()) }, &image);
    assert!(
        matches!(answer, Verdict::Failed { kind: FailureKind::Host, .. })
            && answer.reason().contains("Device or resource busy"),
        "{answer:?}"
    );
    let model = report::Model::of(&run);
    assert_eq!(
        model.main.causes[0].cause,
        "the card's group is held by somebody else, or belongs to another user"
    );
}

#[test]
fn a_card_that_left_the_bus_is_the_host_s_fault_whatever_its_guest_saw() {
    let failure = || Failure::new("driver", FailureKind::Guest, "no driver has 0000:01:00.0");
    let mut facts = Facts::default();
    assert_eq!(failure().judged_by(&facts).kind, FailureKind::Guest);
    facts.all("host.gone", [""; 0]);
    assert_eq!(failure().judged_by(&facts).kind, FailureKind::Guest);
    let mut facts = Facts::default();
    facts.all("host.gone", ["0000:41:00.0"]);
    let judged = failure().judged_by(&facts);
    assert_eq!(judged.kind, FailureKind::Host);
    assert!(judged.cause.starts_with("0000:41:00.0 left this host's bus"), "{}", judged.cause);
}
