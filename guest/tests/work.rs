//! The built program does its GPU work: on Mesa's software Vulkan, and on libraries that a C compiler makes here, so
//! that loading, calling and ending are real where no card is.

#![cfg(all(target_os = "linux", feature = "program"))]

use no43_guest::work::{WorkCause, WorkOutcome, WorkReport, WorkResult, parse_work};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Compiles `tests/fake/NAME.c` to the library `file`, once; `None` where there is no compiler.
fn fake(name: &str, file: &str) -> Option<&'static Path> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder")).path();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake").join(name).with_extension("c");
    let new = folder.join(format!("{file}.{:?}", std::thread::current().id()));
    let done = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&new)
        .arg(source)
        .arg("-lm")
        .status();
    match done {
        Ok(status) => assert!(status.success(), "{name}.c does not compile"),
        Err(_) => return None,
    }
    std::fs::rename(new, folder.join(file)).expect("renamed");
    Some(folder)
}

fn work(words: &[&str], environment: &[(&str, &str)]) -> (WorkReport, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_no43-guest"));
    command.args(["work", "--json"]).args(words).envs(environment.iter().copied());
    let output = command.output().expect("it runs");
    let report = parse_work(&output.stdout);
    (
        report.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr))),
        output.status.success(),
    )
}

fn one(words: &[&str], environment: &[(&str, &str)]) -> WorkResult {
    let (report, good) = work(words, environment);
    assert_eq!(report.results.len(), 1, "{report:?}");
    assert_eq!(good, report.results[0].outcome != WorkOutcome::Failed);
    report.results.into_iter().next().unwrap()
}

#[test]
fn software_vulkan_computes_and_is_never_a_card() {
    let result = one(&["--adapter", "software", "--only", "vulkan-compute"], &[]);
    if matches!(result.cause, Some(WorkCause::NoLibrary | WorkCause::NoComputeDevice)) {
        println!("not tried: {:?} (packages libvulkan1, mesa-vulkan-drivers)", result.reason);
        assert!(std::env::var_os("CI").is_none(), "CI installs both packages");
        return;
    }
    assert_eq!(result.outcome, WorkOutcome::Passed, "{result:?}");
    assert_eq!(result.adapter.unwrap().software, Some(true));
    assert!(result.metrics.iter().any(|m| m.name == "words" && m.value == (1 << 20) - 5));
    // The same library for a card that is not there.
    let (result, other) = (
        one(&["--adapter", "10de:2484", "--only", "vulkan-compute"], &[]),
        one(
            &["--adapter", "10de:2484", "--only", "vulkan-compute"],
            &[("VK_ICD_FILENAMES", "/nothing"), ("VK_DRIVER_FILES", "/nothing")],
        ),
    );
    assert_eq!(
        (result.outcome, result.cause),
        (WorkOutcome::Skipped, Some(WorkCause::OnlySoftware)),
        "{result:?}"
    );
    assert_eq!(other.cause, Some(WorkCause::NoComputeDevice), "{other:?}");
}

#[test]
fn a_seed_changes_the_numbers_and_not_the_end() {
    let result = one(&["--adapter", "software", "--only", "vulkan-compute", "--seed", "4294967295"], &[]);
    assert_ne!(result.outcome, WorkOutcome::Failed, "{result:?}");
}

#[test]
fn without_libraries_all_of_nvidias_work_is_skipped_with_the_reason() {
    let result = one(&["--adapter", "10de:2484", "--only", "cuda-checksum"], &[]);
    assert_eq!(result.outcome, WorkOutcome::Skipped, "{result:?}");
    let names = ["nvenc-frame", "optix-trace"];
    let (report, good) = work(&["--adapter", "10de:2484", "--only", names[0], "--only", names[1]], &[]);
    assert!(good);
    for (result, name) in report.results.iter().zip(names) {
        assert_eq!((result.name.as_str(), result.outcome), (name, WorkOutcome::Skipped), "{result:?}");
        assert!(result.reason.is_some());
    }
}

#[test]
fn the_calls_of_cuda_are_made_and_every_defect_is_seen() {
    let Some(folder) = fake("cuda", "libcuda.so.1") else { return println!("not tried: no C compiler") };
    let address = "0000:01:00.0";
    let run = |name: &str, defect: &str, more: &[&str]| {
        let path = folder.to_str().unwrap();
        let environment = [("LD_LIBRARY_PATH", path), ("FAKE_CUDA", defect), ("FAKE_ADDRESS", address)];
        one(&[&["--adapter", "10de:2484@0000:01:00.0", "--only", name], more].concat(), &environment)
    };
    for name in ["cuda-checksum", "cuda-memory", "cuda-copy"] {
        let result = run(name, "none", &[]);
        assert_eq!(result.outcome, WorkOutcome::Passed, "{result:?}");
        let adapter = result.adapter.unwrap();
        assert_eq!((adapter.name.as_str(), adapter.address.as_deref()), ("Fake GeForce", Some(address)));
        assert_eq!(
            (adapter.memory_bytes, adapter.driver.as_deref()),
            (Some(8 << 30), Some("CUDA 13.0, compute capability 8.6"))
        );
    }
    // half of 64 MiB, although the library gives no piece so large
    let tested = |result: &WorkResult| result.metrics.iter().find(|m| m.name == "tested").map(|m| m.value);
    assert_eq!(tested(&run("cuda-memory", "none", &[])), Some(((64 << 20) / 100 * 50) & !0xfff));
    for (name, defect, cause, words) in [
        ("cuda-checksum", "wrong", WorkCause::WrongAnswer, "word 5 is 0x00000000 instead of"),
        ("cuda-checksum", "launch", WorkCause::CallFailed, "cuCtxSynchronize gives 719 (CUDA_ERROR_OTHER)"),
        (
            "cuda-memory",
            "memory",
            WorkCause::WrongAnswer,
            "1 words of the video memory lost their pattern, the first at 0x134 of",
        ),
        ("cuda-copy", "copy", WorkCause::WrongAnswer, "1 words are wrong"),
        ("cuda-checksum", "crash", WorkCause::Crashed, "ended without an answer: signal: 6"),
        ("cuda-checksum", "hang", WorkCause::TimedOut, "did not end within 1 s"),
    ] {
        let result = run(name, defect, if defect == "hang" { &["--limit-seconds", "1"] } else { &[] });
        assert_eq!(
            (result.outcome, result.cause),
            (WorkOutcome::Failed, Some(cause)),
            "{defect}: {result:?}"
        );
        assert!(result.reason.as_ref().is_some_and(|r| r.contains(words)), "{defect}: {result:?}");
    }
}

/// The encoder works on the context of a card that computes, so both libraries are stood in for.
#[test]
fn the_encoder_is_called_and_what_it_makes_is_read() {
    if fake("nvenc", "libnvidia-encode.so.1").is_none() {
        return println!("not tried: no C compiler");
    }
    let path = fake("cuda", "libcuda.so.1").unwrap().to_str().unwrap();
    let run = |defect: &str, more: &[&str]| {
        let environment = [
            ("LD_LIBRARY_PATH", path),
            ("FAKE_CUDA", "none"),
            ("FAKE_ADDRESS", "0000:01:00.0"),
            ("FAKE_NVENC", defect),
        ];
        let words = ["--adapter", "10de:2484@0000:01:00.0", "--only", "nvenc-frame"];
        one(&[&words, more].concat(), &environment)
    };
    let result = run("nothing", &[]);
    assert_eq!(result.outcome, WorkOutcome::Passed, "{result:?}");
    assert_eq!(result.adapter.as_ref().unwrap().name, "Fake GeForce");
    let names: Vec<_> = result.metrics.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["time-per-frame", "encoded-bytes"]);
    for (defect, cause, words) in [
        ("none", WorkCause::NotSupported, "nvEncOpenEncodeSessionEx gives 2 (the device is not supported)"),
        ("old", WorkCause::NotSupported, "serves version 10.0 of its interface"),
        ("sessions", WorkCause::CallFailed, "gives 10 (out of memory, or as many sessions"),
        ("start", WorkCause::CallFailed, "gives 12 (unsupported parameter): as asked for"),
        ("size", WorkCause::WrongAnswer, "640 x 368 instead of 640 x 360"),
        ("blind", WorkCause::WrongAnswer, "have 924, 924 and 924 bytes: the patterns need 1350 each"),
        ("frozen", WorkCause::WrongAnswer, "frames of other patterns are equal"),
        ("garbage", WorkCause::WrongAnswer, "no sequence parameter set"),
        ("hang", WorkCause::TimedOut, "did not end within 1 s"),
    ] {
        let result = run(defect, if defect == "hang" { &["--limit-seconds", "1"] } else { &[] });
        assert_eq!(result.cause, Some(cause), "{defect}: {result:?}");
        assert!(result.reason.as_ref().is_some_and(|r| r.contains(words)), "{defect}: {result:?}");
    }
}

/// So does OptiX, whose stand-in reads the programs and traces the rays on the processor.
#[test]
fn rays_are_traced_by_our_programs_and_every_answer_is_compared() {
    if fake("optix", "libnvoptix.so.1").is_none() {
        return println!("not tried: no C compiler");
    }
    let path = fake("cuda", "libcuda.so.1").unwrap().to_str().unwrap();
    let run = |defect: &str, more: &[&str]| {
        let environment = [
            ("LD_LIBRARY_PATH", path),
            ("FAKE_CUDA", if defect == "kepler" { defect } else { "none" }),
            ("FAKE_ADDRESS", "0000:01:00.0"),
            ("FAKE_OPTIX", defect),
        ];
        let words = ["--adapter", "10de:2484@0000:01:00.0", "--only", "optix-trace"];
        one(&[&words, more].concat(), &environment)
    };
    let metrics = |result: &WorkResult| {
        result.metrics.iter().map(|m| (m.name.clone(), m.value)).take(3).collect::<Vec<_>>()
    };
    let result = run("nothing", &[]);
    assert_eq!(result.outcome, WorkOutcome::Passed, "{result:?}");
    assert_eq!(result.adapter.as_ref().unwrap().name, "Fake GeForce");
    let count = |name: &str, value| (name.to_owned(), value);
    assert_eq!(metrics(&result), [count("rays", 4096), count("hits", 3481), count("sum", 8_817_058_030_685)]);
    let other = run("nothing", &["--seed", "4294967295"]);
    assert_eq!(other.outcome, WorkOutcome::Passed, "{other:?}");
    assert_ne!(metrics(&result)[1..], metrics(&other)[1..]);
    for (defect, cause, words) in [
        ("kepler", WorkCause::NotSupported, "takes compute capability 5.0 and above, this card has 3.6"),
        ("old", WorkCause::NotSupported, "does not serve interface 41"),
        ("none", WorkCause::NotSupported, "optixDeviceContextCreate gives 7800 (OPTIX_ERROR_OTHER)"),
        ("module", WorkCause::CallFailed, "INVALID_PTX); COMPILE ERROR: as asked for; and more of it; xxx"),
        ("link", WorkCause::CallFailed, "optixPipelineCreate gives 7990 (no name); linked as asked for"),
        ("build", WorkCause::CallFailed, "optixAccelBuild gives 7990"),
        ("launch", WorkCause::CallFailed, "optixLaunch gives 7050"),
        ("wrong", WorkCause::WrongAnswer, "of 4096 rays' answers word 5 is 0x00000000 instead of"),
        ("first", WorkCause::WrongAnswer, " words are wrong"),
        ("blind", WorkCause::WrongAnswer, " words are wrong"),
        ("hang", WorkCause::TimedOut, "did not end within 1 s"),
    ] {
        let result = run(defect, if defect == "hang" { &["--limit-seconds", "1"] } else { &[] });
        assert_eq!(result.cause, Some(cause), "{defect}: {result:?}");
        let reason = result.reason.as_ref().unwrap();
        assert!(reason.contains(words) && reason.len() < 1200, "{defect}: {result:?}");
    }
}

#[test]
fn nvml_is_asked_and_what_it_refuses_is_unknown() {
    let Some(folder) = fake("nvml", "libnvidia-ml.so.1") else { return println!("not tried: no C compiler") };
    let run = |environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_no43-guest"));
        command.arg("nvml").env("LD_LIBRARY_PATH", folder).envs(environment.iter().copied());
        command.output().expect("it runs")
    };
    let output = run(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts = serde_json::from_slice::<no43_guest::nvidia::NvidiaFacts>(&output.stdout).unwrap();
    insta::assert_snapshot!(serde_json::to_string(&facts).unwrap(), @r#"{"driver_version":"580.95.05","nvml_version":"13.580.95.05","cuda_version":"13.1","schema":null,"cards":[{"address":"0000:01:00.0","id":"10de:2484","subsystem":"10de:146b","name":"NVIDIA GeForce RTX 3070","brand":null,"vbios":"94.04.3f.00.77","link":{"speed":1,"width":16,"max_speed":4,"max_width":16},"replays":null,"bar1_bytes":8589934592,"memory_bytes":8589934592,"memory_used_bytes":314572800,"virtualization":"pass-through","driver_model":null,"encoder_percent":null,"encoder_sessions":null,"throttle_reasons":["gpu-idle","sw-power-cap","0x1000"],"gsp_firmware":"580.95.05","gsp":true,"temperature_c":41,"lost":false},{"address":null,"id":null,"subsystem":null,"name":null,"brand":null,"vbios":null,"link":null,"replays":null,"bar1_bytes":null,"memory_bytes":null,"memory_used_bytes":null,"virtualization":null,"driver_model":null,"encoder_percent":null,"encoder_sessions":null,"throttle_reasons":null,"gsp_firmware":null,"gsp":null,"temperature_c":null,"lost":true}],"unknown":["card 0: replays: not supported","card 1: GPU is lost"]}"#);
    let output = run(&[("FAKE_NVML", "no driver")]);
    let facts = serde_json::from_slice::<no43_guest::nvidia::NvidiaFacts>(&output.stdout).unwrap();
    assert!(!output.status.success());
    assert_eq!(facts.unknown, ["NVML does not start: driver not loaded"]);
}

#[test]
fn nvidia_smi_is_run_and_read_or_its_sentence_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let samples = include_str!("../src/gpu/data/nvidia-smi.xml");
    let newest = samples.rsplit("=====\n").next().unwrap();
    let run = |prints: &str| {
        let script = folder.path().join("nvidia-smi");
        std::fs::write(&script, format!("#!/bin/sh\n[ \"$*\" = '-q -x' ] && cat <<'END'\n{prints}\nEND\n"))
            .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_no43-guest"));
        let output = command.arg("nvidia-smi").env("PATH", path).output().expect("it runs");
        let facts = serde_json::from_slice::<no43_guest::nvidia::NvidiaFacts>(&output.stdout).unwrap();
        (facts, output.status.success())
    };
    let (facts, good) = run(newest);
    assert!(good && facts.unknown.is_empty(), "{facts:?}");
    assert_eq!((facts.schema.as_deref(), facts.cards.len()), (Some("v12"), 1));
    let (facts, good) = run("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.");
    assert!(!good && facts.unknown[0].contains("couldn't communicate"), "{facts:?}");
    let (facts, good) = run(&newest.repeat(400)); // more than is read
    assert!(good && facts.cards.len() == 1, "{facts:?}");
}

#[test]
fn a_wrong_command_line_says_what_there_is() {
    let run = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_no43-guest")).arg("work").args(words).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["--adapter", "software", "--only", "d3d11-scene"]);
    assert!(code == Some(1) && text.contains("d3d11-scene is no work for linux guests"), "{text}");
    let (code, text) = run(&["--adapter", "software", "--only", "juggle"]);
    assert!(code == Some(1) && text.contains("there is cuda-checksum"), "{text}");
    let (code, text) = run(&["--adapter", "0000:ff:1f.7"]);
    assert!(code == Some(1) && text.contains("nothing here is 0000:ff:1f.7"), "{text}");
}
