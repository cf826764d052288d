//! `no43 shot`: a picture of the emulated screen.

use std::path::PathBuf;
use std::time::Duration;

use no43_harness::exit_codes;
use no43_harness::running::Ask;

use no43_machine::Qmp;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::running::{client_failure, connect, running, runs};

/// For QEMU's greeting.
const LIMIT: Duration = Duration::from_secs(10);

/// The card's own output cannot be seen from the host; this is the emulated screen beside it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance, or the recipe whose Windows is being installed
    name: String,
    /// The PNG file [default: NAME.png]
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let file = args.file.clone().unwrap_or_else(|| format!("{}.png", args.name).into());
    let raw = format!("shot-{}.ppm", std::process::id());
    let (raw, asked) = match crate::running::installation(&args.name)? {
        Some(installation) => {
            let raw = installation.dir.join(raw);
            let qmp = Qmp::connect(&installation.control, LIMIT).or_exit(exit_codes::FAILED_HOST)?;
            let asked = qmp.raw("screendump", serde_json::json!({ "filename": raw }));
            (raw, asked.map(drop).or_exit(exit_codes::FAILED_HOST))
        }
        None => {
            let runs = runs()?;
            running(&runs, &args.name)?;
            let raw = runs.dirs(&args.name).dir().join(raw);
            let asked = connect(&runs, &args.name)?.ask(&Ask::Shot { path: raw.clone() });
            (raw, asked.map_err(|error| client_failure(&error)))
        }
    };
    let saved = asked.and_then(|()| {
        no43_machine::screen::save_as_png(&raw, &file)
            .map_err(|error| Failure::new(exit_codes::FAILED_HOST, error))
    });
    let _ = std::fs::remove_file(&raw);
    let (width, height) = saved?;
    context.print(&serde_json::json!({"file": file, "width": width, "height": height}), |_| {
        format!("{}  {width}x{height}\n", file.display())
    })?;
    Ok(exit_codes::OK)
}
