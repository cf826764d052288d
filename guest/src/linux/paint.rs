//! `no43-guest paint` and `unpaint`: a picture that stays on a card's connector while the harness looks at it.
//!
//! A picture lives as long as its process is DRM master. The guest agent, however, waits for everybody who holds
//! the output of a command, so `paint` starts a holder (this program again, own session, no standard streams),
//! waits for its answer and ends. One holder per card; a file per holder under `/run/no43-guest` names it, and a
//! pidfd plus the process's start time make sure that nothing else is ever killed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use no43_guest::protocol::{PROTOCOL_VERSION, Painted};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::display::DisplayDevice;
use super::{Root, display, names, pci, read_text, scanout, wait_for};

/// How long the card's display device may take to appear: drivers load after the agent has started, which takes
/// up to ten seconds on one emulated core.
pub(crate) const DEVICE_LIMIT: Duration = Duration::from_secs(30);

/// How long a holder may take to have the picture on the screen. Setting a mode on real hardware trains links
/// and may take some seconds.
const PAINT_LIMIT: Duration = Duration::from_secs(60);

/// How long a holder may take to end after SIGTERM, before SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What the holder tells the process that started it: one line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Painted(Painted),
    Failed(String),
}

/// File under `/run/no43-guest` that names a holder.
#[derive(Serialize, Deserialize)]
struct HolderFile {
    pid: i32,
    /// Start of the process in clock ticks since boot: with the pid, it names the process for good.
    start_time: u64,
    address: String,
}

/// Puts the pattern of `seed` on the card at `card`, for at most `hold`.
///
/// # Errors
/// If the card has no display device within [`DEVICE_LIMIT`], or the picture could not be shown.
pub(crate) fn paint(root: &Root, card: &str, seed: u64, hold: Duration) -> Result<Painted> {
    let address = parse_address(card)?;
    end_holders(root, Some(&address))?;
    let program = std::env::current_exe().context("failed to find this program's own file")?;
    let mut holder = Command::new(program)
        .args(["hold-picture", "--card", &address])
        .args(["--seed", &seed.to_string(), "--hold-seconds", &hold.as_secs().to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start the holder of the picture")?;
    let mut stdout = holder.stdout.take().context("the holder of the picture has no output")?;
    let answer = match read_answer(&mut stdout) {
        Ok(answer) => answer,
        Err(error) => {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err(error);
        }
    };
    match answer {
        Answer::Painted(painted) => Ok(painted),
        Answer::Failed(reason) => {
            let _ = holder.wait();
            Err(anyhow!(reason))
        }
    }
}

/// The holder: paints, answers on its standard output, closes that, and stays until its time is over or it is
/// told to end. What goes wrong is part of the answer.
pub(crate) fn hold(root: &Root, card: &str, seed: u64, hold: Duration) -> Result<()> {
    let _ = rustix::process::setsid(); // fails only where we lead a session already
    let result = parse_address(card).and_then(|address| {
        let node = wait_for_node(root, &address)?;
        let scanout = scanout::paint(&node, seed).map_err(|error| name_holders(root, &node, error))?;
        let file = write_holder_file(root, &address)?;
        Ok((address, scanout, file))
    });
    let (answer, held) = match result {
        Ok((address, scanout, file)) => {
            let painted = Painted {
                version: PROTOCOL_VERSION,
                address,
                connector: scanout.connector.clone(),
                width: scanout.width,
                height: scanout.height,
                seed,
                pid: std::process::id(),
            };
            (Answer::Painted(painted), Some((scanout, file)))
        }
        Err(error) => (Answer::Failed(format!("{error:#}")), None),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    std::io::stdout().write_all(&line).context("failed to answer")?;
    let Some((scanout, file)) = held else { return Ok(()) };
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    let end = Instant::now() + hold;
    while Instant::now() < end && scanout.is_alive() {
        std::thread::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())));
    }
    let _ = fs::remove_file(file);
    Ok(())
}

/// Takes pictures off the screens: that of `card`, or all of them. Gives the addresses; none is fine.
///
/// # Errors
/// If a holder cannot be ended.
pub(crate) fn unpaint(root: &Root, card: Option<&str>) -> Result<Vec<String>> {
    let address = card.map(parse_address).transpose()?;
    end_holders(root, address.as_deref())
}

fn parse_address(card: &str) -> Result<String> {
    pci::address(card).with_context(|| format!("'{card}' is no PCI address; one looks like 0000:01:00.0"))
}

fn read_answer(stdout: &mut (impl Read + AsFd)) -> Result<Answer> {
    let limit = DEVICE_LIMIT + PAINT_LIMIT;
    if !wait_readable(&*stdout, limit)? {
        bail!("the picture was not on the screen after {} s (the driver hangs?)", limit.as_secs());
    }
    let mut line = String::new();
    BufReader::new(stdout.take(64 << 10)).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the holder of the picture died; the kernel log may say why");
    }
    serde_json::from_str(&line).context("the holder of the picture gave a broken answer")
}

/// Waits for the display device of the function at `address` and gives the path of its node.
fn wait_for_node(root: &Root, address: &str) -> Result<PathBuf> {
    let device = |address: &str| {
        let devices = display::devices(root, &mut Vec::new());
        devices.into_iter().find(|device| device.pci.as_deref() == Some(address))
    };
    let found = wait_for(DEVICE_LIMIT, || match device(address).filter(|device| device.node.is_some()) {
        None if is_hopeless(root, address) => Some(None),
        None => None,
        found => Some(found),
    });
    let device = found.flatten().with_context(|| why_no_device(root, address))?;
    node_of(root, &device)
}

/// Whether waiting cannot help: there is no such function, or our init has loaded all drivers and none took it.
fn is_hopeless(root: &Root, address: &str) -> bool {
    let function = root.path("sys/bus/pci/devices").join(address);
    let is_settled = root.state().join(super::init::SETTLED).exists();
    !function.exists() || is_settled && !function.join("driver").exists()
}

fn why_no_device(root: &Root, address: &str) -> String {
    let seconds = DEVICE_LIMIT.as_secs();
    let function = root.path("sys/bus/pci/devices").join(address);
    if !function.exists() {
        return format!("the guest has no PCI function {address}");
    }
    match fs::read_link(function.join("driver")) {
        Ok(driver) => {
            let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{address} has the driver {driver}, but no display device after {seconds} s")
        }
        Err(_) => format!("no driver has bound to {address}, so it has no display device"),
    }
}

/// The device's node: made by devtmpfs, or by us where `/dev` is something else.
fn node_of(root: &Root, device: &DisplayDevice) -> Result<PathBuf> {
    let node = root.path("dev/dri").join(&device.name);
    let (major, minor) = device.node.context("the display device has no number")?;
    if node.exists() {
        return Ok(node);
    }
    let own = root.state().join(&device.name);
    fs::create_dir_all(root.state())?;
    match mknodat(CWD, &own, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor)) {
        Ok(()) | Err(Errno::EXIST) => Ok(own),
        Err(error) => Err(error).with_context(|| format!("failed to make the device node {}", own.display())),
    }
}

/// Adds the names of the processes that have `node` open, because one of them is the master in our place.
fn name_holders(root: &Root, node: &Path, error: anyhow::Error) -> anyhow::Error {
    let denied = [Errno::ACCESS, Errno::BUSY].map(|errno| Some(errno.raw_os_error()));
    let is_taken = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| denied.contains(&cause.raw_os_error()));
    let holders = if is_taken { openers(root, node) } else { Vec::new() };
    if holders.is_empty() {
        return error;
    }
    error.context(format!("{} is in use by {}", node.display(), holders.join(", ")))
}

/// Processes other than this one that have `node` open, as `Xorg (pid 312)`.
fn openers(root: &Root, node: &Path) -> Vec<String> {
    let proc_dir = root.path("proc");
    let mut found = Vec::new();
    for pid in names(&proc_dir).unwrap_or_default() {
        if pid == std::process::id().to_string() || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let fds = proc_dir.join(&pid).join("fd");
        let has_it = |fd: &String| fs::read_link(fds.join(fd)).is_ok_and(|target| target == node);
        if names(&fds).unwrap_or_default().iter().any(has_it) {
            let name = read_text(&proc_dir.join(&pid).join("comm")).unwrap_or_else(|_| "a process".into());
            found.push(format!("{name} (pid {pid})"));
        }
    }
    found
}

fn holder_path(root: &Root, address: &str) -> PathBuf {
    root.state().join(format!("picture-{address}.json"))
}

fn write_holder_file(root: &Root, address: &str) -> Result<PathBuf> {
    let path = holder_path(root, address);
    let pid = std::process::id().cast_signed();
    let start_time = start_time(root, pid).context("failed to read our own start time")?;
    let text = serde_json::to_vec(&HolderFile { pid, start_time, address: address.to_owned() })?;
    fs::create_dir_all(root.state())?;
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

fn end_holders(root: &Root, only: Option<&str>) -> Result<Vec<String>> {
    let mut ended = Vec::new();
    for name in names(&root.state())? {
        let path = root.state().join(&name);
        if !name.starts_with("picture-") || only.is_some_and(|address| holder_path(root, address) != path) {
            continue;
        }
        if let Some(holder) = read_text(&path).ok().and_then(|t| serde_json::from_str::<HolderFile>(&t).ok())
            && end_holder(root, &holder)?
        {
            ended.push(holder.address);
        }
        let _ = fs::remove_file(path);
    }
    Ok(ended)
}

/// Ends the process if it still is the one that wrote the file; `false` if it is gone already.
fn end_holder(root: &Root, holder: &HolderFile) -> Result<bool> {
    let Some(pid) = Pid::from_raw(holder.pid) else { return Ok(false) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(false),
        pidfd => pidfd.context("failed to open the holder's process")?,
    };
    // Looked at after the pidfd was opened: from here on it cannot become another process.
    if start_time(root, holder.pid) != Some(holder.start_time) {
        return Ok(false);
    }
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&pidfd, signal) {
            Err(Errno::SRCH) => return Ok(true),
            sent => sent.context("failed to end the holder of the picture")?,
        }
        if wait_readable(&pidfd, END_LIMIT)? {
            return Ok(true);
        }
    }
    bail!(
        "the holder of the picture of {} (pid {}) does not end; the driver hangs",
        holder.address,
        holder.pid
    )
}

/// Start of a process in clock ticks since boot: field 22 of `stat`, counted behind the name in parentheses.
fn start_time(root: &Root, pid: i32) -> Option<u64> {
    let stat = read_text(&root.path("proc").join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Waits until something can be read from `fd` (of a pidfd: the process ended); `false` after `limit`.
fn wait_readable(fd: impl AsFd, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec::try_from(left)?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    fn linked_proc(guest: &FakeGuest) -> Root {
        let root = guest.root();
        std::os::unix::fs::symlink("/proc", root.path("proc")).unwrap();
        root
    }

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    fn write_file(root: &Root, pid: i32, start_time: u64, address: &str) {
        let file = HolderFile { pid, start_time, address: address.into() };
        fs::create_dir_all(root.state()).unwrap();
        fs::write(holder_path(root, address), serde_json::to_vec(&file).unwrap()).unwrap();
    }

    #[test]
    fn unpaint_ends_the_holder_and_then_has_nothing_to_do() {
        let guest = FakeGuest::new();
        let root = linked_proc(&guest);
        let mut child = sleeper();
        let pid = child.id().cast_signed();
        write_file(&root, pid, start_time(&root, pid).unwrap(), "0000:01:00.0");
        assert!(unpaint(&root, Some("02:00.0")).unwrap().is_empty());
        assert_eq!(unpaint(&root, Some("01:00.0")).unwrap(), ["0000:01:00.0"]);
        assert!(!child.wait().unwrap().success());
        assert!(unpaint(&root, None).unwrap().is_empty());
    }

    #[test]
    fn a_process_that_got_the_pid_of_a_dead_holder_is_left_alone() {
        let guest = FakeGuest::new();
        let root = linked_proc(&guest);
        let mut child = sleeper();
        let pid = child.id().cast_signed();
        write_file(&root, pid, start_time(&root, pid).unwrap() + 1, "0000:01:00.0");
        assert!(unpaint(&root, None).unwrap().is_empty());
        assert!(!holder_path(&root, "0000:01:00.0").exists());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn who_has_the_device_open_is_named() {
        let guest = FakeGuest::new();
        let root = linked_proc(&guest);
        guest.write("node", "");
        let node = root.path("node").canonicalize().unwrap();
        let mut child =
            Command::new("sleep").arg("600").stdin(fs::File::open(&node).unwrap()).spawn().unwrap();
        let denied = anyhow!(std::io::Error::from(Errno::ACCESS)).context("failed to become DRM master");
        let text = format!("{:#}", name_holders(&root, &node, denied));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(text.contains(&format!("is in use by sleep (pid {})", child.id())), "{text}");
    }

    #[test]
    fn why_there_is_no_display_device() {
        let guest = FakeGuest::new();
        guest.function("0000:01:00.0", &[]);
        guest.function("0000:02:00.0", &[]);
        guest.driver("0000:02:00.0", "nouveau");
        let texts = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"].map(|a| why_no_device(&guest.root(), a));
        insta::assert_snapshot!(texts.join("\n"), @r"
        no driver has bound to 0000:01:00.0, so it has no display device
        0000:02:00.0 has the driver nouveau, but no display device after 30 s
        the guest has no PCI function 0000:03:00.0
        ");
    }

    #[test]
    fn nobody_waits_for_a_card_that_cannot_come() {
        let guest = FakeGuest::new();
        guest.function("0000:01:00.0", &[]);
        guest.write("run/no43-guest/settled", "");
        let start = Instant::now();
        assert!(wait_for_node(&guest.root(), "0000:01:00.0").is_err());
        assert!(wait_for_node(&guest.root(), "0000:02:00.0").is_err());
        assert!(start.elapsed() < DEVICE_LIMIT / 2);
    }

    #[test]
    fn nonsense_is_no_address() {
        insta::assert_snapshot!(unpaint(&FakeGuest::new().root(), Some("../etc")).unwrap_err(), @"'../etc' is no PCI address; one looks like 0000:01:00.0");
    }
}
