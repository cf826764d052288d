//! A real qemu-ga, run on this host on a socket: programs, files, limits.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use no43_machine::Agent;
use no43_machine::agent::{AgentError, ExecLimits};
use tempfile::TempDir;

const SECONDS: Duration = Duration::from_secs(20);

struct Guest {
    process: Child,
    dir: TempDir,
    agent: Agent,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// qemu-ga on a socket of its own. It never gets a command that would change this host.
fn guest() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ga.sock");
    let program = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].into_iter().find(|path| Path::new(path).exists());
    let process = Command::new(program.expect("package qemu-guest-agent should be installed"))
        .args(["-m", "unix-listen", "-p"])
        .arg(&socket)
        .arg("-t")
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let agent = Agent::on_socket(&socket);
    agent.wait_ready(SECONDS, |_| {}).unwrap();
    Guest { process, dir, agent }
}

fn shell(script: &str) -> [&str; 3] {
    ["/bin/sh", "-c", script]
}

#[test]
fn programs_run_with_input_output_and_codes() {
    let guest = guest();
    let limits = ExecLimits { input: Some(b"hello".to_vec()), ..ExecLimits::within(SECONDS) };
    let output = guest.agent.exec(&shell("cat; echo oops >&2; exit 7"), &limits).unwrap();
    assert_eq!((output.code, output.signal, output.success()), (Some(7), None, false));
    assert_eq!((output.stdout_text().as_str(), output.stderr_text().as_str()), ("hello", "oops\n"));
    assert!(!output.truncated);
    let output = guest.agent.exec(&shell("kill -9 $$"), &ExecLimits::within(SECONDS)).unwrap();
    assert_eq!((output.code, output.signal), (None, Some(9)));
    let limits = ExecLimits { env: vec!["WHO=me".into()], ..ExecLimits::within(SECONDS) };
    assert_eq!(guest.agent.exec(&shell("echo $WHO"), &limits).unwrap().stdout_text(), "me\n");
    let error = guest.agent.exec(&["/no/such/program"], &ExecLimits::within(SECONDS)).unwrap_err();
    assert!(matches!(error, AgentError::Refused { .. }), "{error}");
}

#[test]
fn a_program_has_a_deadline_and_can_be_killed() {
    let guest = guest();
    let began = Instant::now();
    let limits = ExecLimits::within(Duration::from_millis(300));
    let error = guest.agent.exec(&["sleep", "1000"], &limits).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    let AgentError::ProgramTimedOut { pid, program, .. } = &error else { panic!("{error}") };
    assert_eq!(program, "sleep");
    assert!(guest.agent.kill_program(*pid).unwrap().success());
}

#[test]
fn what_is_left_behind_does_not_hold_a_spawn_or_a_saved_run() {
    let guest = guest();
    let began = Instant::now();
    guest.agent.spawn(&["sleep", "3"]).unwrap();
    let output = guest
        .agent
        .exec_saved(&shell("sleep 3 & echo left; exit 3"), &ExecLimits::within(SECONDS), 100)
        .unwrap();
    assert_eq!((output.code, output.stdout_text().as_str()), (Some(3), "left\n"));
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[test]
fn large_output_comes_whole_by_file_and_cut_by_capture() {
    let guest = guest();
    let script = "head -c 20000000 /dev/zero";
    let output = guest.agent.exec(&shell(script), &ExecLimits::within(SECONDS)).unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (16 << 20, true));
    let output = guest.agent.exec_saved(&shell(script), &ExecLimits::within(SECONDS), 30_000_000).unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (20_000_000, false));
    let output = guest.agent.exec_saved(&shell(script), &ExecLimits::within(SECONDS), 1000).unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (1000, true));
}

#[test]
fn files_come_and_go_byte_by_byte() {
    let guest = guest();
    let path = guest.dir.path().join("a file");
    let path = path.to_str().unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| ((number * 31) >> 3) as u8).collect();
    guest.agent.write_file(path, &bytes).unwrap();
    assert_eq!(guest.agent.read_file(path, 3_000_000).unwrap(), bytes);
    let error = guest.agent.read_file(path, 2_999_999).unwrap_err();
    assert!(matches!(error, AgentError::FileTooLarge { .. }), "{error}");
    assert_eq!(guest.agent.read_file_prefix(path, 5).unwrap(), (bytes[..5].to_vec(), true));
    guest.agent.write_file(path, b"").unwrap();
    assert_eq!(guest.agent.read_file(path, 0).unwrap(), b"");
    assert!(guest.agent.read_file("/no/such/file", 1).is_err());
}

#[test]
fn a_client_that_died_in_the_middle_of_a_command_leaves_no_trace() {
    use std::io::Write;
    let guest = guest();
    let info = guest.agent.os_info().unwrap();
    assert!(info.kernel_release.is_some());
    drop(guest.agent.clone());
    // Our own half command, by a second client after the first has gone.
    let other = Agent::on_socket(guest.dir.path().join("ga.sock"));
    let Guest { agent, .. } = &guest;
    agent.ping(SECONDS).unwrap();
    let waiting = std::thread::spawn(move || other.ping(Duration::from_secs(1)));
    // qemu-ga serves one client at a time: the second one waits, and its limit holds.
    assert!(matches!(waiting.join().unwrap(), Err(AgentError::TimedOut { .. })));
    agent.ping(SECONDS).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ga.sock");
    let mut process = Command::new("qemu-ga")
        .args(["-m", "unix-listen", "-p"])
        .arg(&socket)
        .arg("-t")
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut dead = loop {
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    dead.write_all(b"{\"execute\": \"guest-pi").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(dead);
    let result = Agent::on_socket(&socket).ping(SECONDS);
    process.kill().unwrap();
    process.wait().unwrap();
    result.unwrap();
}
