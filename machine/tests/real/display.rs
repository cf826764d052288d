//! Pictures: screendump of a device, QEMU's placeholder, pushed frames.

use std::time::{Duration, Instant};

use no43_machine::is_placeholder;
use no43_machine::spec::Display;

use super::{bare, start};

#[test]
fn a_card_without_a_driver_shows_the_placeholder_and_seabios_does_not() {
    let (mut spec, _dir, options) = bare("screens");
    spec.display = Display::Vga;
    spec.extra = ["-device", "secondary-vga,id=gpu0"].map(String::from).to_vec();
    let machine = start(&spec, &options);
    let picture = machine.screendump(Some("gpu0")).unwrap();
    assert_eq!(picture.dimensions(), (640, 480));
    assert!(is_placeholder(&picture));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let picture = machine.screendump(Some("screen")).unwrap();
        let drawn = picture.pixels().any(|pixel| pixel != picture.get_pixel(0, 0));
        if drawn && !is_placeholder(&picture) {
            assert_eq!(picture.dimensions(), (720, 400));
            break;
        }
        assert!(Instant::now() < deadline, "SeaBIOS should write something");
        std::thread::sleep(Duration::from_millis(50));
    }
    let error = machine.screendump(Some("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    let left = std::fs::read_dir(machine.dirs().dir()).unwrap().flatten();
    assert!(!left.into_iter().any(|entry| entry.path().extension().is_some_and(|end| end == "ppm")));
}

/// The last picture of an idle SeaBIOS: no change for a second.
fn last_picture(display: Display) -> (image::RgbImage, bool) {
    let (mut spec, _dir, options) = bare("frames");
    spec.display = display;
    // Without a disk SeaBIOS ends with "No bootable device" and a steady cursor.
    let machine = start(&spec, &options);
    let mut frames = machine.frames(None);
    let (mut last, deadline) = (None, Instant::now() + Duration::from_secs(30));
    while Instant::now() < deadline {
        match frames.next_changed(Duration::from_secs(2)).unwrap() {
            Some(picture) => last = Some(picture),
            None => break,
        }
    }
    let asked = machine.screendump(None).unwrap();
    let last = last.unwrap();
    // The cursor blinks: at most its cell differs.
    let differing = last.pixels().zip(asked.pixels()).filter(|(one, other)| one != other).count();
    assert_eq!(last.dimensions(), asked.dimensions());
    assert!(differing <= 9 * 16, "{differing} pixels differ");
    (last, frames.is_pushed())
}

#[test]
fn asked_frames_follow_the_screen() {
    let (picture, pushed) = last_picture(Display::Vga);
    assert!(!pushed);
    assert_eq!(picture.dimensions(), (720, 400));
}

#[cfg(feature = "dbus-display")]
#[test]
fn pushed_frames_follow_the_screen() {
    let (picture, pushed) = last_picture(Display::Dbus);
    assert!(pushed);
    assert_eq!(picture.dimensions(), (720, 400));
}

#[test]
fn a_dead_machine_has_no_frames() {
    let (mut spec, _dir, options) = bare("dead-frames");
    spec.display = Display::Dbus;
    let machine = start(&spec, &options);
    let mut frames = machine.frames(None);
    frames.next_changed(Duration::from_secs(10)).unwrap().unwrap();
    machine.kill();
    let began = Instant::now();
    while frames.next_changed(Duration::from_secs(30)).is_ok() {}
    assert!(began.elapsed() < Duration::from_secs(10));
}
