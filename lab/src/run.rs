//! One command of the inner no43: carried in, run as an ordinary user, its words and its evidence brought out.
//!
//! Output does not go through the guest agent, which has none before a program's end: it goes to files on the share, which
//! are read along from outside. The program's end is a file too, so a run of minutes asks the agent nothing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use no43_builder::store::Store;
use serde_json::json;

use crate::carry;
use crate::error::{LabError, Trouble};
use crate::inside;
use crate::outer::Lab;
use crate::port::Server;
use crate::stream::{Replace, Tail};

/// How often the run's files are looked at.
const TICK: Duration = Duration::from_millis(30);
/// A run that is silent for this long is asked for a sign of life of its lab host.
const SILENCE: Duration = Duration::from_secs(60);
/// For that sign: a lab host that builds or boots something with two emulated processors answers in seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(120);

/// What a run gets.
#[derive(Clone)]
pub struct RunOptions<'a> {
    /// A static `no43`: it runs in any lab host.
    pub no43: PathBuf,
    /// `no43-guest` for Linux guests: it is part of what an image's key is made of.
    pub guest_program: Option<PathBuf>,
    /// Where the folders of runs go afterwards, outside.
    pub evidence: PathBuf,
    /// A single run's folder becomes `evidence` itself instead of a folder in it.
    pub flat: bool,
    /// `NAME=VALUE` for the inner command, beside what the lab sets.
    pub env: Vec<String>,
    /// The longest time that the command may take.
    pub limit: Option<Duration>,
    /// How often the person has pressed Ctrl-C so far: once is passed on, twice ends the lab.
    pub interrupts: &'a (dyn Fn() -> u32 + Sync),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The inner no43's exit code.
    pub code: u8,
    /// The folders that it left, where they are now.
    pub folders: Vec<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

/// Runs `no43 <args>` in the lab. Recipes that `args` name are carried in with their folders.
///
/// # Errors
/// A lab fault, [`LabError::Interrupted`], [`LabError::Limit`], or a file that could not be carried. Evidence is brought
/// out in each case, as far as there is any.
pub fn run(
    lab: &Lab,
    args: &[String],
    options: &RunOptions<'_>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<Ended, LabError> {
    let began = Instant::now();
    // Locks do not cross 9p: the images that are read inside are kept from out here.
    let _images = Store::open(Some(&lab.store)).and_then(|store| store.hold())?;
    let folder = Folder::make(lab, options)?;
    let args = carry::recipes(args, &folder.outside.join("work"))?;
    let stop = AtomicBool::new(false);
    let pictures = folder.outside.join("pictures");
    let server = Server { machine: lab.machine(), profile: &lab.place.record.profile, pictures: &pictures };
    let code = std::thread::scope(|scope| {
        scope.spawn(|| server.serve(&stop));
        let code =
            folder.start(lab, &args, options).and_then(|()| folder.follow(lab, options, stdout, stderr));
        stop.store(true, Ordering::Relaxed);
        code
    });
    let folders = match &code {
        Err(error) if error.is_fault() => folder.bring_out_fault(lab, options)?,
        _ => folder.bring_out(options)?,
    };
    Ok(Ended { code: code?, folders, took: began.elapsed() })
}

/// One run's folder on the share: `bin`, `work`, `runs`, `pictures`, `out`.
struct Folder {
    outside: PathBuf,
    inside: String,
}

impl Folder {
    fn make(lab: &Lab, options: &RunOptions<'_>) -> Result<Folder, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("run-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = Folder { outside: lab.share().join(&name), inside: format!("{}/{name}", inside::SHARE) };
        for (sub, mode) in [
            ("", 0o755),
            ("bin", 0o755),
            ("work", 0o777),
            ("runs", 0o777),
            ("pictures", 0o755),
            ("out", 0o755),
        ] {
            let dir = folder.outside.join(sub);
            fs::create_dir_all(&dir).map_err(LabError::file("make", &dir))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                .map_err(LabError::file("change", &dir))?;
        }
        carry::program(&options.no43, &folder.outside.join("bin/no43"))?;
        if let Some(guest) = &options.guest_program {
            carry::program(guest, &folder.outside.join("bin/no43-guest"))?;
        }
        Ok(folder)
    }

    fn start(&self, lab: &Lab, args: &[String], options: &RunOptions<'_>) -> Result<(), LabError> {
        let (user, here) = (inside::USER, &self.inside);
        let mut command: Vec<String> =
            vec!["/bin/sh".into(), "-c".into(), inside::RUN.into(), "no43-run".into()];
        command.push(here.clone());
        command.extend([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "LANG=C.UTF-8".to_owned(),
            format!("HOME=/home/{user}"),
            format!("USER={user}"),
            "TMPDIR=/var/tmp".to_owned(),
            format!("NO43_STORE={}", inside::STORE),
            format!("NO43_STATE={}", inside::STATE),
            format!("NO43_RUNS={here}/runs"),
            format!("NO43_LAB_SHARE={here}/pictures"),
        ]);
        if options.guest_program.is_some() {
            command.push(format!("NO43_GUEST={here}/bin/no43-guest"));
        }
        command.extend(options.env.iter().filter(|setting| setting.contains('=')).cloned());
        command.push(format!("{here}/bin/no43"));
        command.extend(args.iter().cloned());
        let argv: Vec<&str> = command.iter().map(String::as_str).collect();
        let started = lab.machine().agent().spawn(&argv);
        started.map(drop).map_err(|error| lab.fault("starting the command in the lab", &error.into()))
    }

    /// Passes the output on until the command ends.
    fn follow(
        &self,
        lab: &Lab,
        options: &RunOptions<'_>,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<u8, LabError> {
        let file = |name: &str| self.outside.join("out").join(name);
        let mut out = Tail::new(file("stdout"), self.words(options), stdout);
        let mut err = Tail::new(file("stderr"), self.words(options), stderr);
        let (began, mut heard, mut passed_on) = (Instant::now(), Instant::now(), false);
        let reading = |error| LabError::File {
            what: "pass on the output of",
            path: self.outside.join("out"),
            why: error,
        };
        loop {
            // Looked at before the output, so that nothing that came before the end is missed.
            let code = fs::read_to_string(file("code")).ok();
            if options.flat {
                self.say_flat(options, &mut out, &mut err);
            }
            if err.pump().map_err(reading)? | out.pump().map_err(reading)? {
                heard = Instant::now();
            }
            if let Some(code) = code {
                err.finish().map_err(reading)?;
                out.finish().map_err(reading)?;
                let why =
                    || Trouble::Said(format!("the command's exit code is '{}'", code.trim().escape_debug()));
                return code.trim().parse().map_err(|_| lab.fault("reading the exit code", &why()));
            }
            match (options.interrupts)() {
                0 => {}
                1 if passed_on => {}
                1 => {
                    passed_on = true;
                    self.signal(lab, "INT")?;
                }
                _ => return Err(LabError::Interrupted),
            }
            if let Some(limit) = options.limit.filter(|limit| began.elapsed() > *limit) {
                self.signal(lab, "KILL")?;
                return Err(LabError::Limit { limit });
            }
            if !lab.machine().is_alive() {
                return Err(
                    lab.fault("running a command in the lab", &Trouble::Said("QEMU is gone".to_owned()))
                );
            }
            if heard.elapsed() > SILENCE {
                let alive = lab.machine().agent().ping(SIGN_OF_LIFE);
                alive.map_err(|error| lab.fault("running a command in the lab", &error.into()))?;
                heard = Instant::now();
            }
            std::thread::sleep(TICK);
        }
    }

    fn signal(&self, lab: &Lab, name: &str) -> Result<(), LabError> {
        lab.script("passing a signal on", inside::SIGNAL, &[&self.inside, name]).map(drop)
    }

    /// Paths inside, as they will be outside.
    fn words(&self, options: &RunOptions<'_>) -> Replace {
        let evidence = options.evidence.display();
        Replace::new([
            (format!("{}/runs", self.inside), evidence.to_string()),
            (format!("{}/work/", self.inside), String::new()),
        ])
    }

    /// The name of the one folder is known when it is there, which is before its path is said.
    fn say_flat(
        &self,
        options: &RunOptions<'_>,
        out: &mut Tail<&mut dyn Write>,
        err: &mut Tail<&mut dyn Write>,
    ) {
        if let [one] = names(&self.outside.join("runs")).as_slice() {
            let (inside, outside) =
                (format!("{}/runs/{one}", self.inside), options.evidence.display().to_string());
            out.replace(&inside, &outside);
            err.replace(&inside, &outside);
        }
    }

    /// Moves what the run left to where the person wants it, and forgets the rest.
    fn bring_out(&self, options: &RunOptions<'_>) -> Result<Vec<PathBuf>, LabError> {
        let runs = self.outside.join("runs");
        let folders = match names(&runs).as_slice() {
            [] => Vec::new(),
            [one] if options.flat => {
                carry::move_all(&runs.join(one), &options.evidence)?;
                vec![options.evidence.clone()]
            }
            _ => carry::move_all(&runs, &options.evidence)?,
        };
        let _ = fs::remove_dir_all(&self.outside);
        Ok(folders)
    }

    /// A run that a lab fault ended is no evidence about any guest: it goes into a folder of its own, with what the lab
    /// host's kernel and QEMU said and where its CPUs stand, as far as there is any of it.
    fn bring_out_fault(&self, lab: &Lab, options: &RunOptions<'_>) -> Result<Vec<PathBuf>, LabError> {
        let dir = carry::free_name(&options.evidence.join("lab-fault"));
        let folders = self.bring_out(&RunOptions { evidence: dir.clone(), flat: true, ..options.clone() })?;
        fs::create_dir_all(&dir).map_err(LabError::file("make", &dir))?;
        let _ = fs::copy(lab.place.console(), dir.join("lab-console.log"));
        let _ = fs::copy(lab.machine().dirs().stderr(), dir.join("lab-qemu.log"));
        let ask = json!({ "command-line": "info registers -a" });
        if let Ok(registers) = lab.machine().qmp().raw("human-monitor-command", ask) {
            let _ = fs::write(dir.join("lab-cpus.txt"), registers.as_str().unwrap_or_default());
        }
        Ok(folders)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
