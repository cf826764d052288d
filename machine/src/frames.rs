//! A source of changed pictures: pushed by QEMU's D-Bus display where that is right, asked for by `screendump` otherwise.

#[cfg(feature = "dbus-display")]
mod dbus;

use std::time::{Duration, Instant};

use image::RgbImage;

use crate::machine::Machine;
use crate::screen::ScreenError;

/// Between two looks at a screen that cannot push its changes: 5 ms of QEMU's time for each.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The changing picture of one emulated screen.
#[derive(Debug)]
pub struct Frames<'machine> {
    machine: &'machine Machine,
    device: Option<String>,
    last: Option<RgbImage>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    #[cfg(feature = "dbus-display")]
    Dbus(dbus::Listener),
    Screendump,
}

impl Machine {
    /// The changing picture of the first screen (`None`), or of the display device with this id. The first screen is pushed
    /// if the machine has a D-Bus display and its QEMU can share the picture's memory (newer than 7.2); everything else is
    /// asked for five times a second.
    pub fn frames(&self, device: Option<&str>) -> Frames<'_> {
        let source = if device.is_none() { Source::pushed_or_asked(self) } else { Source::Screendump };
        Frames { machine: self, device: device.map(str::to_owned), last: None, source }
    }
}

impl Source {
    #[cfg(feature = "dbus-display")]
    fn pushed_or_asked(machine: &Machine) -> Source {
        dbus::Listener::open(machine.qmp()).map_or(Source::Screendump, Source::Dbus)
    }

    #[cfg(not(feature = "dbus-display"))]
    fn pushed_or_asked(_: &Machine) -> Source {
        Source::Screendump
    }
}

impl Frames<'_> {
    /// Whether QEMU pushes the changes.
    pub fn is_pushed(&self) -> bool {
        !matches!(self.source, Source::Screendump)
    }

    /// The next picture that differs from the last one returned; `None` if nothing changes within `timeout`.
    ///
    /// # Errors
    /// [`ScreenError`], also when the machine has ended.
    pub fn next_changed(&mut self, timeout: Duration) -> Result<Option<RgbImage>, ScreenError> {
        let deadline = Instant::now() + timeout;
        loop {
            let picture = self.next_picture(deadline)?;
            if let Some(picture) = picture
                && self.last.as_ref() != Some(&picture)
            {
                self.last = Some(picture.clone());
                return Ok(Some(picture));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// A picture that may differ; `None` at the deadline.
    fn next_picture(&mut self, deadline: Instant) -> Result<Option<RgbImage>, ScreenError> {
        #[cfg(feature = "dbus-display")]
        if let Source::Dbus(listener) = &mut self.source {
            match listener.next(deadline) {
                dbus::Next::Picture(picture) => return Ok(Some(picture)),
                dbus::Next::Nothing => return Ok(None),
                // No shared memory, or QEMU is gone; `screendump` tells which.
                dbus::Next::Over => self.source = Source::Screendump,
            }
        }
        if self.last.is_some() {
            std::thread::sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now())));
        }
        self.machine.screendump(self.device.as_deref()).map(Some)
    }
}
