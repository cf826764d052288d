//! `no43-guest setup`, `setup-failed` and `first-start`: what their arguments mean on either system.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use no43_guest::setup::event::{LogTail, What};
use no43_guest::setup::first_start::{FirstStart, REQUEST_LIMIT};
use no43_guest::setup::{LINUX_STATE, PORT_NAME, WINDOWS_STATE};

use crate::executor::tell::Teller;
use crate::executor::{self, Ending, Request, logs};
use crate::system;

/// Exit code where `--no-restart` was given and a restart is due.
pub(crate) const RESTART_DUE: u8 = 3;

/// `no43-guest setup`
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// The plan, beside which its sources lie; without it, the plan that was begun goes on
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Folder of state and logs
    #[arg(long, value_name = "FOLDER", default_value = if cfg!(windows) { WINDOWS_STATE } else { LINUX_STATE })]
    state: PathBuf,
    /// Pass over actions that only Windows can do, and tell so (stand-in for Windows Setup)
    #[arg(long)]
    stand_in: bool,
    /// What C: is in a Linux guest
    #[arg(long, value_name = "FOLDER")]
    drive_c: Option<PathBuf>,
    /// End with exit code 3 where the guest would restart or switch itself off
    #[arg(long)]
    no_restart: bool,
    #[command(flatten)]
    channels: Channels,
    /// Started by the service manager of Windows
    #[arg(long, hide = true)]
    service: bool,
}

/// Where reports go.
#[derive(clap::Args, Clone)]
pub(crate) struct Channels {
    /// A port or file that reports go to, instead of the first serial port and the set-up port; may be given again
    #[arg(long = "channel", value_name = "PATH")]
    channels: Vec<PathBuf>,
}

impl Channels {
    pub(crate) fn teller(&self) -> Teller {
        let usual = if cfg!(windows) {
            [r"\\.\COM1".into(), format!(r"\\.\Global\{PORT_NAME}")]
        } else {
            ["/dev/ttyS0".into(), format!("/dev/virtio-ports/{PORT_NAME}")]
        };
        if self.channels.is_empty() {
            Teller::new(&usual.map(PathBuf::from))
        } else {
            Teller::new(&self.channels)
        }
    }
}

impl Setup {
    /// Carries the plan out. Gives the exit code.
    pub(crate) fn run(self) -> Result<u8> {
        #[cfg(windows)]
        if self.service {
            return crate::windows::service::run_as(move || self.carry_out());
        }
        if self.service {
            bail!("--service is for the service manager of Windows");
        }
        self.carry_out()
    }

    fn carry_out(&self) -> Result<u8> {
        let mut teller = self.channels.teller();
        let request = Request {
            plan: self.plan.clone(),
            state: self.state.clone(),
            drive_c: self.drive_c.clone(),
            stand_in: self.stand_in,
        };
        let mut actor = system::actor(&self.state, &self.channels.channels);
        let ending = executor::run(&request, &mut actor, &mut |run, what| teller.tell(run, what));
        teller.end();
        match ending {
            Ending::Finished => Ok(0),
            Ending::Busy => {
                eprintln!("no43-guest: another process carries out the plan in {}", self.state.display());
                Ok(0)
            }
            Ending::Restart | Ending::PowerOff if self.no_restart => Ok(RESTART_DUE),
            Ending::Restart => system::restart(),
            Ending::PowerOff => system::power_off(),
            Ending::Failed(failure) => bail!("set-up failed: {failure}"),
        }
    }
}

/// `no43-guest setup-failed`: tells the ends of Windows Setup's own logs.
pub(crate) fn setup_failed(channels: &Channels) {
    let tail = |file: &PathBuf| LogTail { file: file.display().to_string(), lines: logs::tail(file) };
    let logs = system::setup_logs().iter().map(tail).filter(|log| !log.lines.is_empty()).collect();
    let mut teller = channels.teller();
    teller.tell(0, What::SetupFailed { logs });
    teller.end();
}

/// `no43-guest first-start`: reads the request from a file, which is removed, or from standard input.
pub(crate) fn first_start(from: Option<&Path>) -> Result<bool> {
    let mut bytes = Vec::new();
    let limit = REQUEST_LIMIT as u64 + 1;
    match from {
        None => {
            std::io::stdin().take(limit).read_to_end(&mut bytes).context("failed to read standard input")?;
        }
        Some(path) => {
            let file =
                std::fs::File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
            let read = file.take(limit).read_to_end(&mut bytes);
            // It holds a password, so it goes in any case.
            let removed = std::fs::remove_file(path);
            read.with_context(|| format!("failed to read {}", path.display()))?;
            removed.with_context(|| format!("failed to remove {}, which holds secrets", path.display()))?;
        }
    }
    let request = FirstStart::parse(&bytes).map_err(anyhow::Error::msg)?;
    let answer = system::first_start(&request);
    println!("{}", serde_json::to_string(&answer)?);
    Ok(answer.steps.iter().all(|step| step.done))
}
