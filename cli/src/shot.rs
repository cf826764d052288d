//! `no43 shot`: a picture of the emulated screen.

use std::path::PathBuf;

use no43_harness::exit_codes;
use no43_harness::running::Ask;

use crate::context::{Context, Done, Failure};
use crate::running::{client_failure, connect, running, runs};

/// The card's own output cannot be seen from the host; this is the emulated screen beside it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance
    name: String,
    /// The PNG file [default: NAME.png]
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    running(&runs, &args.name)?;
    let file = args.file.clone().unwrap_or_else(|| format!("{}.png", args.name).into());
    let raw = runs.dirs(&args.name).dir().join(format!("shot-{}.ppm", std::process::id()));
    let asked = connect(&runs, &args.name)?.ask(&Ask::Shot { path: raw.clone() });
    let saved = asked.map_err(|error| client_failure(&error)).and_then(|()| {
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
