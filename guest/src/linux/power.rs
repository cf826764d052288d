//! `shutdown`, `poweroff`, `reboot` and `halt` for a guest whose PID 1 is this program.
//!
//! The guest agent calls `/sbin/shutdown -h -P|-r|-H +0 "hypervisor initiated shutdown"`; the image links these
//! names to this program. The signals are those of busybox' init, whose tools therefore work as well.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Switch it off.
    PowerOff,
    /// Start it again.
    Reboot,
    /// Stop, but leave the power on.
    Halt,
}

impl Ending {
    /// The signal that asks PID 1 for it.
    pub(crate) fn signal(self) -> Signal {
        match self {
            Self::PowerOff => Signal::USR2,
            Self::Reboot => Signal::TERM,
            Self::Halt => Signal::USR1,
        }
    }

    /// What a signal to PID 1 asks for. The kernel sends SIGINT for Ctrl-Alt-Del.
    pub(crate) fn from_signal(signal: i32) -> Option<Self> {
        let all = [Self::PowerOff, Self::Reboot, Self::Halt];
        let ctrl_alt_del = (signal == Signal::INT.as_raw()).then_some(Self::Reboot);
        all.into_iter().find(|ending| ending.signal().as_raw() == signal).or(ctrl_alt_del)
    }
}

/// What `name` (the name this program was called by) with `arguments` asks for; `None` for any other name.
pub(crate) fn requested(name: &str, arguments: &[String]) -> Option<Result<Ending>> {
    let default = match name {
        "shutdown" | "poweroff" => Ending::PowerOff,
        "reboot" => Ending::Reboot,
        "halt" => Ending::Halt,
        _ => return None,
    };
    Some(parse(name, default, arguments))
}

/// Asks PID 1.
pub(crate) fn ask(ending: Ending) -> Result<()> {
    let (own, init) = (Path::new("/proc/self/exe"), Path::new("/proc/1/exe"));
    if std::fs::read_link(own)? != std::fs::read_link(init).context("failed to look at PID 1")? {
        bail!("PID 1 is another program; use its own tools to end this machine");
    }
    kill_process(Pid::INIT, ending.signal()).context("failed to signal PID 1")
}

/// `-h` only says "end the machine"; how is said by the letter beside it, as with other versions of these tools.
fn parse(name: &str, default: Ending, arguments: &[String]) -> Result<Ending> {
    let mut ending = default;
    let mut words = arguments.iter();
    for option in words.by_ref().take_while(|argument| argument.as_str() != "--") {
        match option.as_str() {
            "-P" | "-p" | "--poweroff" => ending = Ending::PowerOff,
            "-r" | "--reboot" => ending = Ending::Reboot,
            "-H" | "--halt" => ending = Ending::Halt,
            "-h" | "-f" | "--force" | "--no-wall" => {}
            "now" | "+0" | "0" => break, // a message to the users follows
            other => bail!("{name}: '{other}' is not supported; the time can only be 'now' or '+0'"),
        }
    }
    Ok(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Option<Result<Ending>> {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().unwrap();
        requested(&name, &words.collect::<Vec<_>>())
    }

    #[test]
    fn what_the_guest_agent_asks_for() {
        for (line, ending) in [
            ("shutdown -h -P +0 hypervisor initiated shutdown", Ending::PowerOff),
            ("shutdown -h -r +0 hypervisor initiated shutdown", Ending::Reboot),
            ("shutdown -h -H +0 hypervisor initiated shutdown", Ending::Halt),
            ("shutdown -P +0", Ending::PowerOff),
            ("shutdown -h now", Ending::PowerOff),
            ("poweroff", Ending::PowerOff),
            ("reboot -f", Ending::Reboot),
            ("halt -p", Ending::PowerOff),
            ("halt", Ending::Halt),
        ] {
            assert_eq!(asked(line).unwrap().unwrap(), ending, "{line}");
            assert_eq!(Ending::from_signal(ending.signal().as_raw()), Some(ending));
        }
        assert_eq!(Ending::from_signal(Signal::INT.as_raw()), Some(Ending::Reboot));
        assert_eq!(Ending::from_signal(Signal::HUP.as_raw()), None);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        assert!(asked("no43-guest report").is_none());
        insta::assert_snapshot!(asked("shutdown -h +5").unwrap().unwrap_err(), @"shutdown: '+5' is not supported; the time can only be 'now' or '+0'");
        assert!(asked("shutdown -c").unwrap().is_err());
    }

    #[test]
    fn another_pid_1_is_not_signalled() {
        assert!(ask(Ending::PowerOff).is_err());
    }
}
