//! A job: one command in a fresh machine with a card of its own, and nothing left of either afterwards.
//!
//! The machine belongs to this process: when it is gone, killed or not, the supervisor switches the machine off and gives
//! the card back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use no43_machine::AgentError;
use no43_machine::agent::{Agent, ExecLimits, FollowedFile, GuestPid};

use crate::exit_codes;
use crate::guest_program::hang_bell;
use crate::running::{Ask, Client, ClientError, Happened, Launch, Line, Refusal, Request, Runs};
use crate::stop::Stop;
use crate::words;

/// Between two looks at a command's output, for which the agent has no event: an eighth of the time since something last
/// came, within these bounds. Each look costs the guest something.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LAST: Duration = Duration::from_millis(150);
/// Small helpers in the guest (making folders, mounting).
const HELPER_LIMIT: Duration = Duration::from_secs(60);
/// From the switching off of a machine to the cards' return; each step on the way has a limit of its own.
const END_LIMIT: Duration = Duration::from_secs(180);
/// A file that comes out of a guest.
const OUT_MAX: u64 = 2 << 30;
/// How often a stop is looked at while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Where a Linux guest has the job's secrets.
const SECRETS: &str = "/run/no43-job/secrets";
/// Where it keeps what the command says.
const OUT: &str = "/run/no43-job.out";
const ERR: &str = "/run/no43-job.err";

/// Mounts the disk of secrets, found by its serial number, for root only.
const MOUNT: &str = r#"
for disk in /sys/block/*; do
    [ "$(cat "$disk/serial")" = no43-secrets ] || continue
    mkdir -p -m 700 "$1" && exec mount -t vfat -o ro,umask=077 "/dev/${disk##*/}1" "$1"
done 2>/dev/null
echo "the disk of secrets is not here" >&2; exit 1
"#;

/// Runs the command with its output in files that only root reads; they are read along from outside. The shell is the only
/// program beside the command: in a guest that has just started, each costs a tenth of a second.
const RUN: &str = r#"mask=$(umask); umask 077; exec > "$1" 2> "$2" < /dev/null; umask "$mask"
shift 2; cd "$HOME" 2>/dev/null || cd /; exec "$@""#;

/// What to do in the machine.
#[derive(Debug, Clone)]
pub struct Job {
    /// Program and arguments, without a shell.
    pub command: Vec<String>,
    /// Files that go in: from here, to there.
    pub files_in: Vec<(PathBuf, String)>,
    /// Files that come out: from there, to here. Also of a command that failed, as far as they are there.
    pub files_out: Vec<(String, PathBuf)>,
    /// There are secrets on a disk.
    pub secrets: bool,
    /// `NAME=VALUE` for the command.
    pub env: Vec<String>,
    /// How long the command may take.
    pub limit: Duration,
    /// Leave machine and card after a failure.
    pub keep_on_failure: bool,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JobEnded {
    /// The command's exit code; 128 and its number for a signal. `None` if it did not come to that.
    pub exit: Option<u8>,
    /// What went wrong with the job itself.
    pub problem: Option<String>,
    /// The exit code for the caller: the command's own, or one of [`exit_codes`].
    pub code: u8,
    /// The machine that was left running.
    pub kept: Option<String>,
    /// From running guest CPUs to the first answer of the guest's agent. `None` if it did not come to that.
    pub boot_ms: Option<u64>,
    /// From the first answer of the guest's agent to the command's end.
    pub command_ms: u64,
}

/// What became of a step.
type Step<T> = Result<T, Refusal>;

/// A job under way.
pub struct Running<'a> {
    /// Where running machines are.
    pub runs: &'a Runs,
    /// The machine's name.
    pub name: &'a str,
    /// Ctrl-C.
    pub stop: &'a Stop,
    /// The command's output.
    pub stdout: &'a mut dyn Write,
    /// Its error output.
    pub stderr: &'a mut dyn Write,
    /// Hears what happens to the machine.
    pub heard: &'a mut dyn FnMut(&Line),
}

impl Running<'_> {
    /// Starts the machine, does the job, and ends the machine.
    pub fn run(mut self, launch: &Launch<'_>, request: &Request, job: &Job) -> JobEnded {
        let client = match launch.launch(request, self.name) {
            Ok(client) => client,
            Err(refusal) => return ended(Err(refusal), None, 0),
        };
        let mut client = match client.follow(true) {
            Ok(client) => client,
            Err(error) => return ended(Err(lost(&error)), None, 0),
        };
        let ready = self.until_ready(&mut client);
        let boot_ms = ready.as_ref().ok().copied();
        let began = Instant::now();
        let done = ready.and_then(|_| self.work(job));
        let command_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut result = ended(done, boot_ms, command_ms);
        let runs_on = self.runs.row(self.name).is_some_and(|row| row.pid.is_some());
        if job.keep_on_failure
            && result.code != exit_codes::OK
            && runs_on
            && !self.stop.is_set()
            && self.ask(&Ask::Untie).is_ok()
        {
            result.kept = Some(self.name.to_owned());
            return result;
        }
        if let Err(refusal) = self.end(&mut client) {
            // a machine that cannot be ended is worse than a command that failed
            result.code = if result.code == exit_codes::OK { refusal.code } else { result.code };
            result.problem.get_or_insert(refusal.cause);
        }
        result
    }

    fn ask(&self, ask: &Ask) -> Result<(), ClientError> {
        Client::connect(self.runs, self.name)?.ask(ask)
    }

    fn stopped(&self) -> Step<()> {
        if self.stop.is_set() {
            Err(Refusal { code: exit_codes::INTERRUPTED, cause: "stopped as asked".into() })
        } else {
            Ok(())
        }
    }

    /// Milliseconds from running guest CPUs to the agent's first answer.
    fn until_ready(&mut self, client: &mut Client) -> Step<u64> {
        loop {
            self.stopped()?;
            let Some(line) = client.next(TICK).map_err(|error| lost(&error))? else { continue };
            (self.heard)(&line);
            match line.what {
                Happened::Ready { after_ms } => return Ok(after_ms),
                Happened::NotReady { limit_s } => {
                    return Err(guest(format!(
                        "the guest's agent did not answer within {limit_s} s (checks.ready)"
                    )));
                }
                Happened::Ended { how, .. } => {
                    return Err(guest(format!("the machine ended before the command ran: {how}")));
                }
                Happened::Failed { cause } => {
                    let code = self.last_code(client);
                    return Err(Refusal { code, cause });
                }
                _ => {}
            }
        }
    }

    /// The exit code that the supervisor ends with.
    fn last_code(&self, client: &mut Client) -> u8 {
        while let Ok(Some(line)) = client.next(END_LIMIT) {
            if let Happened::Done { code } = line.what {
                return code;
            }
        }
        exit_codes::FAILED_HOST
    }

    fn work(&mut self, job: &Job) -> Step<u8> {
        let broken = |error: AgentError| guest(error.to_string());
        let dirs = self.runs.dirs(self.name);
        let agent = Agent::on_socket(dirs.agent_socket());
        hang_bell(&agent, &dirs);
        let linux = !agent.is_windows().map_err(broken)?;
        if job.secrets && linux {
            helper(&agent, &["/bin/sh", "-c", MOUNT, "no43-job", SECRETS])?;
        }
        for (from, to) in &job.files_in {
            self.stopped()?;
            copy_in(&agent, from, to, linux)?;
        }
        let code = if linux { self.stream(&agent, job) } else { self.captured(&agent, job) };
        for (from, to) in &job.files_out {
            let copied = copy_out(&agent, from, to);
            // a command that failed may have left nothing, and its failure is what counts
            if let (Ok(0), Err(error)) = (&code, copied) {
                return Err(error);
            }
        }
        code
    }

    /// In a Linux guest: output is passed on as it comes.
    fn stream(&mut self, agent: &Agent, job: &Job) -> Step<u8> {
        let broken = |error: AgentError| guest(error.to_string());
        let mut argv = vec!["/bin/sh", "-c", RUN, "no43-job", OUT, ERR];
        argv.extend(job.command.iter().map(String::as_str));
        let mut env = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "HOME=/root".to_owned(),
            format!("NO43_SECRETS={SECRETS}"),
        ];
        env.extend(job.env.iter().cloned());
        let began = Instant::now();
        let pid = agent.spawn_with(&argv, env).map_err(broken)?;
        let (mut out, mut err) = (Growing::new(agent, OUT), Growing::new(agent, ERR));
        let (mut last_came, mut looked) = (began, began);
        let mut wait = agent.wait_for(pid, began, job.limit);
        loop {
            let end = agent.ended(pid).map_err(broken)?;
            let pause = (last_came.elapsed() / 8).clamp(LOOK_FIRST, LOOK_LAST);
            if looked.elapsed() >= pause {
                looked = Instant::now();
                if self.pass_on(&mut out, &mut err)? {
                    last_came = looked;
                }
            }
            if let Some(end) = end {
                while self.pass_on(&mut out, &mut err)? {}
                return match out.is_there() && err.is_there() {
                    true => Ok(exit_code(end.code, end.signal)),
                    false => Err(guest(format!("no room for the command's output in {OUT}"))),
                };
            }
            self.stopped()?;
            if began.elapsed() >= job.limit {
                return Err(self.too_long(agent, pid, job));
            }
            wait.pause(pause);
        }
    }

    fn too_long(&self, agent: &Agent, pid: GuestPid, job: &Job) -> Refusal {
        if job.keep_on_failure {
            // whoever looks into the machine should not find the command still changing it
            let _ = agent.kill_program(pid);
        }
        guest(format!("the command did not end within {}", words::limit(job.limit)))
    }

    /// True if there was something.
    fn pass_on(&mut self, out: &mut Growing<'_>, err: &mut Growing<'_>) -> Step<bool> {
        let broken = |error: AgentError| guest(error.to_string());
        let (out, err) = (out.more().map_err(broken)?, err.more().map_err(broken)?);
        // a reader that went away (`| head`) does not end the job
        let _ = self.stdout.write_all(&out).and_then(|()| self.stdout.flush());
        let _ = self.stderr.write_all(&err).and_then(|()| self.stderr.flush());
        Ok(!out.is_empty() || !err.is_empty())
    }

    /// In other guests: output comes at the end.
    fn captured(&mut self, agent: &Agent, job: &Job) -> Step<u8> {
        let argv: Vec<&str> = job.command.iter().map(String::as_str).collect();
        let limits = ExecLimits { env: job.env.clone(), ..ExecLimits::within(job.limit) };
        let output = agent.exec(&argv, &limits).map_err(|error| guest(error.to_string()))?;
        let _ = self.stdout.write_all(&output.stdout);
        let _ = self.stderr.write_all(&output.stderr);
        Ok(exit_code(output.code, output.signal))
    }

    /// Switches the machine off and waits until the cards are back and its disk is gone.
    fn end(&mut self, client: &mut Client) -> Step<()> {
        // asked again and again: a supervisor that is only starting takes it as "give up"
        let _ = self.ask(&Ask::Stop { limit_s: 0, force: true });
        let deadline = Instant::now() + END_LIMIT;
        let mut problem = None;
        while Instant::now() < deadline {
            let line = match client.next(TICK) {
                Ok(Some(line)) => line,
                Ok(None) => continue,
                // it has told its end before, or died; then the machine's end is what counts
                Err(_) if self.runs.row(self.name).is_none() => break,
                Err(error) => return Err(lost(&error)),
            };
            (self.heard)(&line);
            match line.what {
                Happened::GaveBack { problem: Some(why), .. } => problem = Some(why),
                Happened::Done { .. } => break,
                _ => {}
            }
        }
        match problem {
            Some(cause) => Err(Refusal {
                code: exit_codes::FAILED_HOST,
                cause: format!("the card was not given back: {cause}"),
            }),
            None => Ok(()),
        }
    }
}

/// A file that the guest's shell makes, some time after it was asked to.
struct Growing<'a> {
    agent: &'a Agent,
    path: &'static str,
    file: Option<FollowedFile>,
}

impl<'a> Growing<'a> {
    fn new(agent: &'a Agent, path: &'static str) -> Self {
        Self { agent, path, file: None }
    }

    fn is_there(&self) -> bool {
        self.file.is_some()
    }

    fn more(&mut self) -> Result<Vec<u8>, AgentError> {
        if self.file.is_none() {
            match self.agent.follow_file(self.path) {
                Ok(file) => self.file = Some(file),
                Err(AgentError::Refused { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        self.file.as_ref().map_or(Ok(Vec::new()), FollowedFile::more)
    }
}

fn ended(done: Step<u8>, boot_ms: Option<u64>, command_ms: u64) -> JobEnded {
    let (exit, problem, code) = match done {
        Ok(exit) => (Some(exit), None, exit),
        Err(Refusal { code, cause }) => (None, Some(cause), code),
    };
    JobEnded { exit, problem, code, kept: None, boot_ms, command_ms }
}

fn guest(cause: impl AsRef<str>) -> Refusal {
    Refusal { code: exit_codes::FAILED_GUEST, cause: words::clean(cause.as_ref()) }
}

fn lost(error: &ClientError) -> Refusal {
    Refusal { code: exit_codes::FAILED_HOST, cause: error.to_string() }
}

/// As shells say it.
fn exit_code(code: Option<i64>, signal: Option<i64>) -> u8 {
    let of_signal = || signal.and_then(|signal| u8::try_from(128 + signal).ok()).unwrap_or(u8::MAX);
    code.map_or_else(of_signal, |code| u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// A small program that must end with 0.
fn helper(agent: &Agent, argv: &[&str]) -> Step<()> {
    let output =
        agent.exec(argv, &ExecLimits::within(HELPER_LIMIT)).map_err(|error| guest(error.to_string()))?;
    if output.success() {
        return Ok(());
    }
    Err(guest(format!(
        "'{}' in the guest failed: {}",
        argv.first().unwrap_or(&""),
        output.stderr_text().trim()
    )))
}

/// A file, or a folder with what is in it.
fn copy_in(agent: &Agent, from: &Path, to: &str, linux: bool) -> Step<()> {
    let input = |error: std::io::Error| Refusal {
        code: exit_codes::INPUT,
        cause: format!("{}: {error}", from.display()),
    };
    if from.is_dir() {
        if linux {
            helper(agent, &["mkdir", "-p", to])?;
        }
        for entry in std::fs::read_dir(from).map_err(input)? {
            let entry = entry.map_err(input)?;
            let name = entry
                .file_name()
                .into_string()
                .map_err(|name| guest(format!("{} is no text", name.display())))?;
            copy_in(agent, &entry.path(), &format!("{}/{name}", to.trim_end_matches('/')), linux)?;
        }
        return Ok(());
    }
    let bytes = std::fs::read(from).map_err(input)?;
    let to = match (to.ends_with('/'), from.file_name()) {
        (true, Some(name)) => format!("{to}{}", name.to_string_lossy()),
        _ => to.to_owned(),
    };
    if let Some((dir, _)) = to.rsplit_once('/').filter(|(dir, _)| linux && !dir.is_empty()) {
        helper(agent, &["mkdir", "-p", dir])?;
    }
    agent.write_file(&to, &bytes).map_err(|error| guest(error.to_string()))?;
    if linux && is_program(from) {
        helper(agent, &["chmod", "+x", &to])?;
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.permissions().mode() & 0o111 != 0)
}

/// The guest's bytes go where the caller said, and nowhere else.
fn copy_out(agent: &Agent, from: &str, to: &Path) -> Step<()> {
    let bytes = agent.read_file(from, OUT_MAX).map_err(|error| guest(format!("{from}: {error}")))?;
    let input = |error: std::io::Error| Refusal {
        code: exit_codes::INPUT,
        cause: format!("{}: {error}", to.display()),
    };
    if let Some(dir) = to.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(input)?;
    }
    std::fs::write(to, bytes).map_err(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_shell_s() {
        assert_eq!(
            [exit_code(Some(0), None), exit_code(Some(42), None), exit_code(None, Some(9))],
            [0, 42, 137]
        );
        assert_eq!(exit_code(Some(-1), None), 255);
    }
}
