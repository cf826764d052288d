//! The real thing, emulated: a lab host with cards, `no43` inside it, guests under its KVM.
//!
//! A lab host has one emulated CPU, so there are as many cases at once as the machine has cores. Images and the lab's
//! snapshot are in the person's own store: the first run builds them (minutes), later ones restore a lab in under a second.

mod faults;
mod host;
mod kept;
mod proof;
mod refusals;

use no43_tests::suite::{Case, Images, Order};
use std::process::ExitCode;

fn main() -> ExitCode {
    no43_tests::suite::main(CASES, Order::ACoreEach, Images::Shared)
}

const LAB: &[&str] = &["no43", "lab"];
const SOAK: &[&str] = &["no43", "lab", "soak"];

static CASES: &[Case] = &[
    Case::new("one-card-is-proved-and-given-back", proof::one_card).needs(LAB),
    Case::new("a-card-that-cannot-work-fails-in-driver-and-nowhere-before", proof::negative_control)
        .needs(LAB),
    Case::new("each-fault-of-a-guest-in-use-is-red-with-its-own-cause", proof::controls).needs(LAB),
    Case::new("what-happens-to-a-card-while-it-is-asked-about-is-the-cause", proof::while_asked).needs(SOAK),
    Case::new("debian-with-systemd-is-proved", proof::debian).needs(LAB),
    Case::new("debian-with-systemd-is-proved-again-after-its-restart", proof::debian_restarts).needs(SOAK),
    Case::new("a-fault-that-comes-with-the-third-start-is-unstable", proof::cycles).needs(SOAK),
    Case::new("a-guest-that-boots-by-uefi-is-proved", proof::uefi).needs(&["no43", "lab", "uefi", "soak"]),
    Case::new("two-restores-have-the-same-files-other-ids-and-the-right-time", proof::restored_twice)
        .needs(LAB),
    Case::new("a-group-with-two-cards-is-refused-and-names-the-other", refusals::bad_groups).needs(LAB),
    Case::new("a-card-that-a-program-has-open-is-refused-and-names-it", refusals::holder).needs(LAB),
    Case::new("a-card-whose-sound-somebody-plays-is-refused-and-names-it", refusals::sound_holder).needs(LAB),
    Case::new("an-ordinary-user-needs-only-the-helper", host::helper).needs(SOAK),
    Case::new("an-instance-starts-with-its-host", host::autostart).needs(SOAK),
    Case::new("a-card-is-kept-free-over-a-reboot-that-waits-for-its-guest", host::reserved).needs(SOAK),
    Case::new("a-card-is-lent-once-and-the-second-is-told-to-whom", refusals::leased_twice).needs(LAB),
    Case::new("too-little-locked-memory-is-said-before-anything-starts", refusals::memlock).needs(LAB),
    Case::new("no-such-card-lists-what-there-is", refusals::no_such_card).needs(LAB),
    Case::new("after-kill-9-of-everything-the-next-change-gives-the-card-back", faults::killed_while_bound)
        .needs(LAB),
    Case::new("after-kill-9-of-no43-a-living-machine-is-not-touched", faults::killed_while_running)
        .needs(LAB),
    Case::new("after-kill-9-at-any-moment-release-puts-things-right", faults::killed_at_any_moment)
        .needs(&["no43", "lab", "soak"]),
    Case::new("ctrl-c-gives-the-card-back", faults::interrupted).needs(LAB),
    Case::new("ctrl-c-twice-leaves-at-once-and-release-puts-things-right", faults::interrupted_twice)
        .needs(LAB),
    Case::new("a-qemu-that-dies-is-a-failure-with-its-last-words", faults::qemu_killed).needs(LAB),
    Case::new("an-agent-that-never-answers-names-phase-limit-and-last-screen", faults::silent_agent)
        .needs(LAB),
    Case::new("three-instances-have-a-card-each-and-survive-their-supervisors", kept::three_at_once)
        .needs(LAB),
    Case::new("a-guest-that-restarts-keeps-its-card-and-a-panic-is-told", kept::guests_that_end).needs(LAB),
    Case::new("jobs-that-pass-fail-hang-and-die-leave-nothing", kept::jobs_over_cards).needs(LAB),
    Case::new("a-start-killed-at-any-moment-leaves-nothing", kept::starts_killed).needs(LAB),
    Case::new("a-guest-has-this-hosts-network-a-folder-and-a-keyboard", kept::network_share_and_usb)
        .needs(LAB),
    Case::new("a-hundred-killed-supervisors-lose-no-guest", kept::a_hundred_kills).needs(SOAK),
    Case::new("twenty-jobs-leave-nothing", kept::twenty_jobs).needs(SOAK),
    Case::new("a-hundred-killed-starts-leave-nothing", kept::a_hundred_starts_killed).needs(SOAK),
    Case::new("a-lab-that-dies-is-a-lab-fault", faults::lab_fault).needs(LAB),
];
