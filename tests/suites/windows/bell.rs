//! How the end of a program is told to the host without being asked for.

use std::fs;

use anyhow::{Context, Result, ensure};
use no43_tests::{Scene, Wine};

use super::wait;

/// Numbers of processes are small multiples of four.
const NOBODY: &str = "4000000000";

pub(super) fn bell(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let long = wine.wine(["ping", "-n", "100", "127.0.0.1"]).start()?;
    let pid = pid(&wine, "ping.exe")?;
    let port = scene.write("bell", "")?;
    let said = || fs::read_to_string(&port).unwrap_or_default();
    let ringer = wine.start_guest(&["ring-at-end", &pid, "--port", r"F:\bell"])?;
    wait("it waits", || said().ends_with('\n'))?;
    ensure!(said() == format!("waits {pid}\n"), "{:?}", said());
    wine.wine(["taskkill", "/F", "/PID", &pid]).ok()?;
    ringer.done()?.must_exit(0)?;
    let both = format!("waits {pid}\nended {pid}\n");
    ensure!(said() == both, "{:?}", said());
    long.done()?;

    // Nothing to wait for. One that has just ended may still be known, so another number, which no process has.
    wine.guest(&["ring-at-end", NOBODY, "--port", r"F:\bell"])?.ok()?;
    ensure!(said() == format!("{both}ended {NOBODY}\n"), "{:?}", said());
    // Wine has no virtio port
    let without = wine.guest(&["ring-at-end", &pid])?.done()?.must_exit(1)?;
    without.must_say(&[r"failed to write to \\.\Global\org.no43.bell.0"])?;
    Ok(())
}

/// The number of a program that was just started, as Windows counts, once it is there.
fn pid(wine: &Wine<'_>, name: &str) -> Result<String> {
    let mut found = None;
    for _ in 0..20 {
        // lines such as `00000038 8        'services.exe'`, the first number in base 16
        let list = wine.wine(["winedbg", "--command", "info proc"]).ok()?.stdout;
        let line = list.lines().find(|line| line.contains(name)).map(str::to_owned);
        found = line.and_then(|line| u32::from_str_radix(line.split_whitespace().next()?, 16).ok());
        if found.is_some() {
            break;
        }
    }
    found.map(|pid| pid.to_string()).with_context(|| format!("{name} is not there"))
}
