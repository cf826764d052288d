//! The later stages, from the target disk: specialize, out-of-box experience, first logon; then a guest with an agent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use no43_guest::setup::{Action, Codes, SetupPlan, Task};

use crate::answer::{self, Later};
use crate::disk;
use crate::machine::{self, FAT, Options, show};

const STATE: &str = "/c/Windows/Setup/State.txt";
/// The state folder of a plan in whose middle the guest restarts. It is written right before the restart: whoever hears that a plan
/// is finished may switch the machine off at once, and what is left here would tell the next layer that its own plan is.
const BEGUN: &str = "/c/Windows/Setup/Begun.txt";

/// Where the installation stands; kept on C: across restarts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Specialize,
    Oobe,
    Complete,
}

impl State {
    const NAMES: [(State, &'static str); 3] =
        [(Self::Specialize, "SPECIALIZE"), (Self::Oobe, "OOBE"), (Self::Complete, "IMAGE_STATE_COMPLETE")];

    pub(crate) fn write(self) -> io::Result<()> {
        let name = Self::NAMES.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name);
        fs::write(STATE, name)
    }

    fn read() -> Option<Self> {
        let text = fs::read_to_string(STATE).ok()?;
        Self::NAMES.iter().find(|(_, name)| *name == text).map(|(state, _)| *state)
    }
}

pub(crate) fn run(options: &Options) -> ! {
    machine::load_modules("virtio-disk");
    // C: is the third partition of the first fixed disk, or whatever holds the state.
    let found = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        disk::disks().into_iter().flat_map(|disk| (1..=4).map(move |n| disk::partition(&disk, n))).any(
            |partition| {
                let mounted = Path::new("/dev").join(&partition).exists()
                    && machine::mount_as(&format!("/dev/{partition}"), "/c", FAT, false);
                let is_it = mounted && Path::new(STATE).exists();
                if mounted && !is_it {
                    let _ = rustix::mount::unmount("/c", rustix::mount::UnmountFlags::empty());
                }
                is_it
            },
        )
    });
    if options.is("panic") {
        machine::panic();
    }
    if !found {
        show("no system disk");
        machine::stand_still();
    }
    machine::name_ports();
    match State::read() {
        Some(State::Complete) => live(options),
        Some(state) => {
            let answer = fs::read_to_string("/c/Windows/Panther/unattend.xml").unwrap_or_default();
            let later = answer::read(&answer).and_then(|root| answer::later(&root));
            match later {
                Ok(later) => go_on(state, &later, options),
                Err(why) => give_up(&why),
            }
        }
        None => give_up("the state of the installation cannot be read"),
    }
}

fn give_up(why: &str) -> ! {
    show(why);
    machine::tell_failure(r"C:\Windows\Panther\setupact.log", &[why.to_owned()]);
    machine::stand_still()
}

fn go_on(state: State, later: &Later, options: &Options) -> ! {
    if state == State::Specialize {
        show("Getting ready");
        if options.is("boot-loop") {
            machine::end(true);
        }
        let _ = fs::write(
            "/c/Windows/Panther/specialize.txt",
            format!("computer {}\r\nlanguage {}\r\n", later.computer_name, later.language),
        );
        let written = State::Oobe.write();
        match written {
            Ok(()) => machine::end(true),
            Err(error) => give_up(&format!("not enough space: {error}")),
        }
    }
    show(&format!("Hi {}", later.user));
    let _ = fs::create_dir_all(format!("/c/Users/{}", later.user));
    first_logon(later, options)
}

/// One command is expected, and it must start the guest program with its plan; what runs is the real program's Linux build.
fn first_logon(later: &Later, options: &Options) -> ! {
    let [command] = &later.first_logon[..] else {
        give_up("unattend file is invalid: FirstLogonCommands must hold exactly one command")
    };
    if !command.contains(r"\no43\no43-guest.exe setup --plan") {
        give_up(&format!("FirstLogonCommands starts something unknown: {command}"));
    }
    let Some(plan) = find_plan() else { give_up("no disk holds no43/plan.json") };
    if options.is("update") {
        restart_in_the_middle(&plan);
    }
    if !carry_out("/c/ProgramData/no43", Some(&plan), false) {
        machine::stand_still();
    }
    let _ = State::Complete.write();
    rustix::fs::sync();
    live(options)
}

/// Restarts under the guest program while it carries out the set-up disk's plan, which gets an action that takes long.
fn restart_in_the_middle(plan: &Path) -> ! {
    let own = "/c/Windows/Setup/plan.json";
    let slow = || -> Option<()> {
        let mut slow = SetupPlan::parse(&fs::read(plan).ok()?).ok()?;
        let run = ["busybox", "sleep", "1000"].map(str::to_owned).to_vec();
        slow.actions.insert(0, Action::new("long", Task::Command { run, codes: Codes::default() }));
        fs::write(own, slow.to_json()).ok()
    };
    if slow().is_none() {
        give_up("the plan cannot be changed");
    }
    std::thread::spawn(|| {
        carry_out("/c/ProgramData/no43", Some(Path::new(own)), false);
        // told by the program itself: nothing restarts any more
        machine::stand_still()
    });
    std::thread::sleep(Duration::from_secs(4));
    if fs::read_to_string("/c/Windows/Setup/Restarts.txt").map_or(0, |text| text.len()) >= 3 {
        machine::stand_still();
    }
    let _ = OpenOptions::new()
        .create(true)
        .append(true)
        .open("/c/Windows/Setup/Restarts.txt")
        .and_then(|mut file| file.write_all(b"."));
    machine::end(true)
}

/// The real guest program's Linux build, with a plan or with the one that was begun; restarts when it is due, and with `goes_on`
/// the next start of a finished system goes on.
fn carry_out(state: &str, plan: Option<&Path>, goes_on: bool) -> bool {
    let mut program = Command::new("/bin/no43-guest");
    program.args(["setup", "--stand-in", "--no-restart", "--drive-c", "/c", "--state", state]);
    if let Some(plan) = plan {
        program.arg("--plan").arg(plan);
    }
    match program.env("PATH", "/bin:/sbin").status().ok().and_then(|status| status.code()) {
        Some(0) => true,
        // The program's own code for a restart that is due.
        Some(3) => {
            if goes_on {
                let _ = fs::write(BEGUN, state);
            }
            machine::end(true)
        }
        _ => false,
    }
}

/// The one command line that Windows' command interpreter would be given: the search for the set-up disk, and the guest
/// program with the plan on it. In Windows a service goes on after a restart; here it is the next start of the guest.
pub(crate) fn command_line(words: &[String]) -> ExitCode {
    let line = words.join(" ");
    let state = line.split(" --state ").nth(1).and_then(|state| state.strip_prefix(r"C:\"));
    let (true, Some(state)) = (line.contains(r"\no43\no43-guest.exe setup --plan"), state) else {
        eprintln!("the stand-in has no cmd.exe but for no43's own command line");
        return ExitCode::FAILURE;
    };
    let state = format!("/c/{}", state.replace('\\', "/"));
    let Some(plan) = find_plan() else { return ExitCode::FAILURE };
    let done = carry_out(&state, Some(&plan), true);
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Goes on with a plan in whose middle the guest restarted.
fn go_on_with_plan() {
    let Ok(state) = fs::read_to_string(BEGUN) else { return };
    let _ = fs::remove_file(BEGUN);
    // the disk must be where it was
    let _ = find_plan();
    let _ = carry_out(&state, None, true);
}

/// The set-up disk, by the file on it, as the command line of the first logon does it.
fn find_plan() -> Option<std::path::PathBuf> {
    machine::wait_for("sda", Duration::from_secs(20));
    std::thread::sleep(Duration::from_millis(500));
    let removable = disk::disks().into_iter().filter(|disk| disk::is_removable(disk));
    removable.flat_map(|disk| [disk::partition(&disk, 1), disk]).enumerate().find_map(|(n, name)| {
        let at = format!("/media/{n}");
        let there = Path::new("/dev").join(&name).exists();
        let plan = Path::new(&at).join("no43/plan.json");
        (there && machine::mount_as(&format!("/dev/{name}"), &at, FAT, false) && plan.exists())
            .then_some(plan)
    })
}

/// `chpasswd` of this system: keeps the password's hash on C:, made by busybox, beside the users' folders.
pub(crate) fn change_password() -> ExitCode {
    let hashed = || -> io::Result<()> {
        let text = io::read_to_string(io::stdin())?;
        let (user, password) =
            text.trim_end_matches('\n').split_once(':').ok_or(io::ErrorKind::InvalidInput)?;
        if !Path::new("/c/Users").join(user).is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no user {user}")));
        }
        let mut child = Command::new("/bin/busybox")
            .args(["mkpasswd", "-m", "sha512", "-S", "standinsalt"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(password.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let hash = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !hash.starts_with("$6$") {
            return Err(io::Error::other("busybox made no hash"));
        }
        fs::write("/c/Windows/shadow.txt", format!("{user}:{}\n", hash.trim()))
    };
    match hashed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chpasswd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A guest as it is after set-up: the real agent, until it is told to shut down.
fn live(options: &Options) -> ! {
    show("Desktop");
    // What the guest program writes there must outlive a restart.
    let _ = fs::create_dir_all("/c/Windows/etc");
    let _ = std::os::unix::fs::symlink("/c/Windows/etc", "/etc");
    let _ = fs::write("/etc/os-release", "NAME=stand-in\nID=mswindows\n");
    if options.is("agent-silent") {
        machine::stand_still();
    }
    let _ = fs::create_dir_all("/var/run");
    if std::process::id() == 1 {
        std::thread::spawn(go_on_with_plan);
    }
    loop {
        let agent: io::Result<Child> = Command::new("/bin/qemu-ga")
            .args(["-m", "virtio-serial", "-p", "/dev/virtio-ports/org.qemu.guest_agent.0", "-t", "/run"])
            .env("PATH", "/bin:/sbin")
            .spawn();
        if let Ok(mut agent) = agent {
            let _ = agent.wait();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
