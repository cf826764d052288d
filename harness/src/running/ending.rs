//! How a machine ended, told apart: the guest's shutdown, its panic, our quit, and QEMU's own death.

use no43_machine::Exit;

use crate::exit_codes;
use crate::words;

/// One way to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    /// In words.
    pub(super) how: String,
    /// Somebody wished it.
    pub(super) orderly: bool,
    /// The exit code of an attached run.
    pub(super) code: u8,
}

/// QEMU's word for its end, whether somebody wished it, who is to blame otherwise, and what people read.
const REASONS: &[(&str, bool, u8, &str)] = &[
    ("guest-shutdown", true, exit_codes::OK, "the guest shut down"),
    ("host-qmp-quit", true, exit_codes::OK, "switched off as asked; the guest was not asked"),
    ("host-qmp-system-reset", true, exit_codes::OK, "reset as asked"),
    ("guest-reset", true, exit_codes::OK, "the guest restarted, and restarts end it"),
    ("host-signal", false, exit_codes::FAILED_HOST, "somebody on this host ended QEMU by a signal"),
    ("host-ui", true, exit_codes::OK, "ended from its window"),
    ("guest-panic", false, exit_codes::FAILED_GUEST, "the guest's kernel panicked"),
    ("host-error", false, exit_codes::FAILED_HOST, "QEMU met an error of this host"),
];

/// `panic` is what the guest's kernel said before.
pub(super) fn ending(exit: &Exit, panic: Option<&str>) -> Ending {
    let reason = exit.reason.as_deref().unwrap_or_default();
    let said = panic.map(|what| format!(": {what}")).unwrap_or_default();
    if let Some((_, orderly, code, how)) = REASONS.iter().find(|row| row.0 == reason) {
        return Ending { how: format!("{how}{said}"), orderly: *orderly, code: *code };
    }
    let status = match (exit.status.code, exit.status.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it gave no reason".to_owned(),
    };
    let stderr = words::clean_to(&exit.stderr, 400);
    let stderr = if stderr.is_empty() { String::new() } else { format!("; its last words: {stderr}") };
    Ending {
        how: format!("QEMU died ({status}){said}{stderr}"),
        orderly: false,
        code: exit_codes::FAILED_HOST,
    }
}

/// What a `GUEST_PANICKED` event says about the cause.
pub(super) fn panic_words(data: &serde_json::Value) -> String {
    let info = &data["info"];
    match info["type"].as_str() {
        // the arguments of KeBugCheckEx: the first one is the stop code
        Some("hyper-v") => {
            let number = |n: usize| info[format!("arg{n}")].as_u64().unwrap_or(0);
            let rest: Vec<String> = (2..=5).map(|n| format!("{:#x}", number(n))).collect();
            format!("stop code {:#010x} ({})", number(1), rest.join(", "))
        }
        Some(other) => words::clean_to(&format!("{other}: {info}"), 300),
        None => "it gave no cause (the serial log may hold its last lines)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_machine::process::Status;
    use serde_json::json;

    fn exit(reason: Option<&str>, code: Option<i32>, signal: Option<i32>) -> Exit {
        Exit { status: Status { code, signal }, reason: reason.map(str::to_owned), stderr: "oops\n".into() }
    }

    #[test]
    fn ends_are_told_apart() {
        let told = |reason, code, signal, panic| {
            let ending = ending(&exit(reason, code, signal), panic);
            (ending.how, ending.orderly, ending.code)
        };
        assert_eq!(
            told(Some("guest-shutdown"), Some(0), None, None),
            ("the guest shut down".into(), true, 0)
        );
        let (how, orderly, code) = told(Some("guest-panic"), Some(0), None, Some("stop code 0x00000116"));
        assert_eq!(
            (how.as_str(), orderly, code),
            ("the guest's kernel panicked: stop code 0x00000116", false, 10)
        );
        let (how, orderly, code) = told(None, None, Some(11), None);
        assert_eq!((how.as_str(), orderly, code), ("QEMU died (signal 11); its last words: oops", false, 11));
    }

    #[test]
    fn a_windows_panic_names_its_stop_code() {
        let data = json!({"action": "pause", "info": {"type": "hyper-v", "arg1": 0x116, "arg2": 1, "arg3": 2, "arg4": 3, "arg5": 4}});
        assert_eq!(panic_words(&data), "stop code 0x00000116 (0x1, 0x2, 0x3, 0x4)");
        assert!(panic_words(&json!({"action": "pause"})).starts_with("it gave no cause"));
    }
}
