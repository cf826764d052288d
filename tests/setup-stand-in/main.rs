//! The stand-in for Windows Setup, and for the Windows that it installs: process 1 of a small Linux, see README.md.
//!
//! It behaves like Setup towards the outside: firmware, boot prompt, disks, restarts, COM1, the agent's port. It is no
//! Windows; what it does not do it says in its log, and never tells as done.

mod answer;
mod disk;
mod installed;
mod machine;
mod medium;
mod setup;
mod xml;

use std::process::ExitCode;

fn main() -> ExitCode {
    let called = std::env::args().next().unwrap_or_default();
    // The guest agent switches the machine off by this name.
    if called.rsplit('/').next() == Some("shutdown") {
        let restart = std::env::args().any(|word| word == "-r");
        machine::end(restart);
    }
    // `no43 build` starts the guest program with a later plan by this name, as it would in Windows.
    if called.rsplit('/').next() == Some("cmd.exe") {
        return installed::command_line(&std::env::args().skip(1).collect::<Vec<_>>());
    }
    // The guest program gives a user the instance's password by this name.
    if called.rsplit('/').next() == Some("chpasswd") {
        return installed::change_password();
    }
    if std::process::id() != 1 {
        eprintln!("the stand-in for Windows Setup is process 1 of a machine of its own");
        return ExitCode::FAILURE;
    }
    machine::mount_system();
    let options = machine::Options::of_kernel();
    machine::load_modules("base");
    match options.stage.as_str() {
        "media" => setup::run(&options),
        _ => installed::run(&options),
    }
}
