//! A system bus of one case's own, with python3-dbusmock's logind on it.

use crate::scene::Scene;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The distribution's own, which has the module of its package; a `python3` that comes first in PATH may lack it.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Python starts within this, on a busy machine too.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// The bus and the mock; both end with it.
#[derive(Debug)]
pub struct MockLogind {
    bus: Child,
    mock: Child,
    /// For `DBUS_SYSTEM_BUS_ADDRESS`.
    pub address: String,
}

impl MockLogind {
    /// Starts both and waits until logind answers. It says that it waits `delay_s` seconds for delay locks.
    pub fn start(scene: &Scene, delay_s: u64) -> Result<Self> {
        let socket = scene.state().join("bus");
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .arg(format!("--address=unix:path={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start dbus-daemon")?;
        let mut address = String::new();
        BufReader::new(bus.stdout.take().context("it has an output")?).read_line(&mut address)?;
        let address = address.trim().to_owned();
        let mock = Command::new(PYTHON)
            .args(["-m", "dbusmock", "--system", "--template", "logind"])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start python3-dbusmock")?;
        let logind = Self { bus, mock, address };
        let end = Instant::now() + UP_LIMIT;
        while logind.inhibitors().is_err() {
            ensure!(Instant::now() < end, "the mock of logind did not come up");
            std::thread::sleep(Duration::from_millis(100));
        }
        let interface = "string:org.freedesktop.login1.Manager";
        let delay = format!("variant:uint64:{}", delay_s * 1_000_000);
        logind.call(
            "org.freedesktop.DBus.Mock.AddProperty",
            &[interface, "string:InhibitDelayMaxUSec", &delay],
        )?;
        Ok(logind)
    }

    fn call(&self, method: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("dbus-send");
        command
            .arg(format!("--bus={}", self.address))
            .args(["--print-reply", "--dest=org.freedesktop.login1"]);
        command.args(["/org/freedesktop/login1", method]).args(arguments).stdin(Stdio::null());
        let output = command.output().context("failed to run dbus-send")?;
        ensure!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The locks that are held, as dbus-send prints them.
    pub fn inhibitors(&self) -> Result<String> {
        self.call("org.freedesktop.login1.Manager.ListInhibitors", &[])
    }

    /// Says that the host is about to shut down.
    pub fn shut_down(&self) -> Result<()> {
        // the signal has to come from who has logind's name: from the mock
        let script = "import dbus,sys; bus=dbus.bus.BusConnection(sys.argv[1]); \
             o=bus.get_object('org.freedesktop.login1','/org/freedesktop/login1'); \
             o.EmitSignal('org.freedesktop.login1.Manager','PrepareForShutdown','b',[True],dbus_interface='org.freedesktop.DBus.Mock')";
        let status = Command::new(PYTHON).args(["-c", script, &self.address]).status()?;
        ensure!(status.success(), "PrepareForShutdown could not be sent");
        Ok(())
    }
}

impl Drop for MockLogind {
    fn drop(&mut self) {
        for child in [&mut self.mock, &mut self.bus] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
