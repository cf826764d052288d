//! `no43 view`: the emulated screen, with keyboard and mouse, in any VNC viewer.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use no43_harness::exit_codes;
use no43_harness::running::vnc_socket;

use crate::context::{Context, Done, Failure, OrExit as _};
use crate::running::{running, runs};

/// Viewers that people have, the simplest first.
const VIEWERS: &[&str] = &["vncviewer", "xtightvncviewer", "gvncviewer", "remote-viewer", "krdc"];

/// The screen is on a socket that only you can open. A viewer that is found here is started on it; --listen lends it to
/// one viewer over 127.0.0.1 and ends with it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance, or the recipe whose Windows is being installed
    name: String,
    /// Wait on this port of 127.0.0.1 for one viewer (0: any free port); whoever connects first gets the screen
    #[arg(long, value_name = "PORT")]
    listen: Option<u16>,
    /// Only print where the screen is
    #[arg(long, conflicts_with = "listen")]
    print: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let socket = match crate::running::installation(&args.name)? {
        Some(installation) => installation.vnc,
        None => {
            let runs = runs()?;
            running(&runs, &args.name)?;
            vnc_socket(&runs.dirs(&args.name))
        }
    };
    if !socket.exists() {
        let what = format!(
            "'{}' has no emulated screen: display.console = \"never\"; its picture is on the card's own output",
            args.name
        );
        return Err(Failure::new(exit_codes::INSTANCE, what));
    }
    if args.print {
        context.print(&serde_json::json!({"vnc": socket}), |_| format!("{}\n", socket.display()))?;
        return Ok(exit_codes::OK);
    }
    let viewer = VIEWERS.iter().copied().find(|name| in_path(name)).filter(|_| args.listen.is_none());
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, args.listen.unwrap_or(0))).or_exit(exit_codes::HOST_SETUP)?;
    let port = listener.local_addr().or_exit(exit_codes::HOST_SETUP)?.port();
    let child = viewer.map(|viewer| start(viewer, port)).transpose().or_exit(exit_codes::HOST_SETUP)?;
    if child.is_none() {
        context.print(&serde_json::json!({"address": "127.0.0.1", "port": port, "socket": socket}), |_| {
            format!("  view     127.0.0.1:{port} waits for one VNC viewer, such as: vncviewer 127.0.0.1::{port}\n")
        })?;
    }
    let (tcp, _) = listener.accept().or_exit(exit_codes::HOST_SETUP)?;
    drop(listener);
    let screen = UnixStream::connect(&socket).or_exit(exit_codes::INSTANCE)?;
    carry(&tcp, &screen).or_exit(exit_codes::FAILED_HOST)?;
    if let Some(mut child) = child {
        let _ = child.wait();
    }
    Ok(exit_codes::OK)
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn start(viewer: &str, port: u16) -> io::Result<std::process::Child> {
    let address = match viewer {
        "remote-viewer" | "krdc" => format!("vnc://127.0.0.1:{port}"),
        // displays count from port 5900, and a name with two colons takes a port
        "gvncviewer" => format!("127.0.0.1:{}", i32::from(port) - 5900),
        _ => format!("127.0.0.1::{port}"),
    };
    eprintln!("  view     {viewer} {address}");
    Command::new(viewer).arg(address).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// Both directions until one side closes.
fn carry(tcp: &std::net::TcpStream, screen: &UnixStream) -> io::Result<()> {
    let (mut from_viewer, mut to_screen) = (tcp.try_clone()?, screen.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut from_viewer, &mut to_screen);
        let _ = to_screen.shutdown(std::net::Shutdown::Both);
    });
    let _ = io::copy(&mut &*screen, &mut &*tcp);
    let _ = tcp.shutdown(std::net::Shutdown::Both);
    let _ = up.join();
    Ok(())
}
