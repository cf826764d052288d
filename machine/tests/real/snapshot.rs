//! A machine saved and restored, twice, and what is plugged in afterwards.

use std::time::Duration;

use no43_machine::hotplug::{self, HotplugError};
use no43_machine::snapshot::{self, SnapshotError};
use no43_machine::spec::{Attach, Display, Share};
use serde_json::Value;

use super::{bare, start};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_saved_machine_comes_back_as_often_as_one_likes() {
    let (mut spec, dir, options) = bare("saved");
    let shared = tempfile::tempdir().unwrap();
    spec.display = Display::Vga;
    spec.spare_ports = 2;
    spec.vmgenid = Some("00000000-0000-0000-0000-000000000001".into());
    spec.shares = vec![Share {
        tag: "store".into(),
        path: shared.path().to_owned(),
        read_only: true,
        virtiofs: None,
        attach: Attach::Later,
    }];
    let machine = start(&spec, &options);
    // Let SeaBIOS draw something.
    let deadline = std::time::Instant::now() + LIMIT;
    while machine.screendump(None).unwrap().dimensions() != (720, 400) {
        assert!(std::time::Instant::now() < deadline, "SeaBIOS should set its text mode");
        std::thread::sleep(Duration::from_millis(50));
    }
    let state = dir.path().join("state");
    snapshot::save(&machine, &state, LIMIT).unwrap();
    assert_eq!(machine.qmp().raw("query-status", Value::Null).unwrap()["status"], "postmigrate");
    drop(machine);
    assert!(std::fs::metadata(&state).unwrap().len() > 100_000);

    spec.incoming = true;
    for twin in 2..4 {
        spec.vmgenid = Some(format!("00000000-0000-0000-0000-00000000000{twin}"));
        let machine = start(&spec, &options);
        snapshot::restore(&machine, &state, LIMIT).unwrap();
        assert_eq!(machine.qmp().raw("query-status", Value::Null).unwrap()["status"], "running");
        assert_eq!(machine.screendump(None).unwrap().dimensions(), (720, 400));
        let guid = machine.qmp().raw("query-vm-generation-id", Value::Null).unwrap();
        assert!(guid["guid"].as_str().unwrap().ends_with(&twin.to_string()));
        hotplug::plug_share(&machine, "store", 1).unwrap();
        // SeaBIOS does not know how to let a device go.
        let error = hotplug::unplug(&machine, "share-store", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, HotplugError::TimedOut { .. }), "{error}");
        let error = hotplug::plug_share(&machine, "store", 1).unwrap_err();
        assert!(matches!(error, HotplugError::Qmp { .. }), "{error}");
    }
}

#[test]
fn a_foreign_state_is_refused_in_qemus_words() {
    let (mut spec, dir, options) = bare("foreign");
    let machine = start(&spec, &options);
    let state = dir.path().join("state");
    snapshot::save(&machine, &state, LIMIT).unwrap();
    drop(machine);
    spec.incoming = true;
    spec.memory_mib = 128;
    let machine = start(&spec, &options);
    let error = snapshot::restore(&machine, &state, LIMIT).unwrap_err();
    assert!(matches!(&error, SnapshotError::Failed { why, .. } if !why.is_empty()), "{error}");
    drop(machine);
    std::fs::write(&state, b"this is no state").unwrap();
    let machine = start(&spec, &options);
    let error = snapshot::restore(&machine, &state, LIMIT).unwrap_err();
    assert!(matches!(&error, SnapshotError::Failed { why, .. } if !why.is_empty()), "{error}");
}
