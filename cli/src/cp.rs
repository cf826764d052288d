//! `no43 cp`: a file into a running guest, or out of it, by its agent.

use std::fs;
use std::path::Path;

use no43_harness::exit_codes;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::running::{agent, runs};

/// Larger files are for a share or the network: the agent's channel carries tens of megabytes a second.
const SIZE_MAX: u64 = 2 << 30;

/// One side is a path on this host, the other NAME:PATH in a guest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is copied: FILE or NAME:PATH
    from: String,
    /// Where to: FILE or NAME:PATH
    to: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    let bytes = match (guest_side(&args.from), guest_side(&args.to)) {
        (None, Some((name, path))) => {
            let size = fs::metadata(&args.from).or_exit(exit_codes::INPUT)?.len();
            too_large(size, &args.from)?;
            let bytes = fs::read(&args.from).or_exit(exit_codes::INPUT)?;
            agent(&runs, name)?.write_file(path, &bytes).or_exit(exit_codes::FAILED_GUEST)?;
            bytes.len()
        }
        (Some((name, path)), None) => {
            let bytes = agent(&runs, name)?.read_file(path, SIZE_MAX).or_exit(exit_codes::FAILED_GUEST)?;
            // the guest names nothing here: the file goes where the person said
            let to = Path::new(&args.to);
            let base = path.rsplit(['/', '\\']).next().filter(|base| !base.is_empty() && *base != "..");
            let to = if to.is_dir() { to.join(base.unwrap_or("file")) } else { to.to_owned() };
            fs::write(&to, &bytes).or_exit(exit_codes::INPUT)?;
            bytes.len()
        }
        _ => {
            let what =
                "one side is a file here, the other is NAME:PATH in a guest: no43 cp notes.txt games:/srv/";
            return Err(Failure::new(exit_codes::USAGE, what));
        }
    };
    context.print(&serde_json::json!({"bytes": bytes}), |_| {
        format!("{}\n", no43_harness::words::bytes(bytes as u64))
    })?;
    Ok(exit_codes::OK)
}

fn too_large(size: u64, name: &str) -> Result<(), Failure> {
    let what =
        || format!("{name} has {}: use a share or the network for that", no43_harness::words::bytes(size));
    if size > SIZE_MAX { Err(Failure::new(exit_codes::USAGE, what())) } else { Ok(()) }
}

/// `NAME:PATH`; a path with a slash before the colon is one of this host.
fn guest_side(text: &str) -> Option<(&str, &str)> {
    let (name, path) = text.split_once(':')?;
    (!name.contains('/') && !name.is_empty() && !path.is_empty()).then_some((name, path))
}

#[cfg(test)]
mod tests {
    use super::guest_side;

    #[test]
    fn a_guest_s_side_has_a_name_and_a_colon() {
        assert_eq!(guest_side("games:C:\\x"), Some(("games", "C:\\x")));
        assert_eq!(guest_side("./a:b"), None);
        assert_eq!(guest_side("plain"), None);
    }
}
