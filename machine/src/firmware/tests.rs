//! Descriptors as distributions ship them, in small.

use super::*;

fn descriptor(name: &str, features: &str, mode: &str) -> String {
    format!(
        r#"{{"description": "x", "interface-types": ["uefi"],
            "mapping": {{"device": "flash", {mode} "executable": {{"filename": "/fw/{name}.fd", "format": "raw"}},
                         "nvram-template": {{"filename": "/fw/{name}-vars.fd", "format": "raw"}}}},
            "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}],
            "features": [{features}], "tags": []}}"#
    )
}

/// Two directories as on Debian, with an override by the administrator.
fn dirs() -> (tempfile::TempDir, [PathBuf; 2]) {
    let root = tempfile::tempdir().unwrap();
    let dirs = ["etc", "usr"].map(|name| root.path().join(name));
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let usr = |file: &str, text: &str| fs::write(dirs[1].join(file), text).unwrap();
    let secure = r#""secure-boot", "requires-smm""#;
    usr("40-enrolled.json", &descriptor("ms", &format!(r#"{secure}, "enrolled-keys""#), ""));
    usr("45-stateless.json", &descriptor("stateless", "", r#""mode": "stateless","#));
    usr("50-secure.json", &descriptor("secure", secure, ""));
    usr("60-plain.json", &descriptor("plain", r#""acpi-s3""#, ""));
    usr("55-of-the-future.json", r#"{"interface-types": [{"new": 1}]}"#);
    usr("README", "not a descriptor");
    (root, dirs)
}

#[test]
fn features_decide_and_not_names() {
    let (_root, dirs) = dirs();
    let plain = find_in(&dirs, Wanted::Plain, "pc-q35-7.2").unwrap();
    assert_eq!((plain.code.path, plain.smm), (PathBuf::from("/fw/plain.fd"), false));
    let secure = find_in(&dirs, Wanted::SecureBoot, "pc-q35-7.2").unwrap();
    assert_eq!((secure.code.path, secure.smm), (PathBuf::from("/fw/ms.fd"), true));
}

#[test]
fn the_administrator_overrides_and_hides() {
    let (_root, dirs) = dirs();
    fs::write(dirs[0].join("10-mine.json"), descriptor("mine", "", "")).unwrap();
    assert_eq!(find_in(&dirs, Wanted::Plain, "pc-q35-7.2").unwrap().code.path, PathBuf::from("/fw/mine.fd"));
    fs::write(dirs[0].join("10-mine.json"), "").unwrap();
    fs::write(dirs[0].join("60-plain.json"), "").unwrap();
    let error = find_in(&dirs, Wanted::Plain, "pc-q35-7.2").unwrap_err();
    assert!(error.to_string().contains("among the 6 firmware descriptors"), "{error}");
    assert!(error.to_string().contains("'ovmf'"), "{error}");
}

#[test]
fn another_machine_has_no_firmware() {
    let (_root, dirs) = dirs();
    assert!(find_in(&dirs, Wanted::Plain, "microvm").is_err());
}

#[test]
fn each_machine_gets_its_own_variables() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template.fd");
    fs::write(&template, b"vars").unwrap();
    fs::set_permissions(&template, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let file = |path| FlashFile { path, format: DiskFormat::Raw };
    let found = Found {
        descriptor: "x.json".into(),
        code: file("/fw/code.fd".into()),
        vars_template: file(template),
        smm: false,
    };
    let own = dir.path().join("own.fd");
    let Firmware::Uefi { vars, .. } = found.with_own_vars(&own).unwrap() else { panic!("should be UEFI") };
    assert_eq!((fs::read(&vars.path).unwrap(), vars.path), (b"vars".to_vec(), own.clone()));
    assert!(!fs::metadata(&own).unwrap().permissions().readonly());
    // A machine's variables are never written over.
    assert!(found.with_own_vars(&own).is_err());
}
