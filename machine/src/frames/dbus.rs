//! QEMU's D-Bus display, peer to peer: QEMU pushes "this changed", the picture is read from the memory that it shares.
//!
//! Only the shared-memory listener (`Listener.Unix.Map`) shows the right picture: with raw `Scanout` and `Update` messages
//! the canvas can stay at the size of an earlier mode. QEMU 7.2 only has those; then [`Next::Over`] is the answer. The
//! listener's two interfaces must be served before its connection is built, because QEMU looks for them at once;
//! `qemu_display::Console::register_listener` adds the second one too late, so only its proxies are used.
//!
//! The memory is read with `pread`, not mapped: a mapping of a file that its owner shortens would kill this process.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use image::RgbImage;
use qemu_display::Console;
use serde_json::json;
use zbus::Connection;
use zbus::zvariant::{Fd, OwnedFd};

use crate::qmp::Qmp;

/// Connecting takes 4 ms; a QEMU that does not answer must not hold anybody.
const OPEN_LIMIT: Duration = Duration::from_secs(3);

/// How often a wait looks whether QEMU is still there.
const SLICE: Duration = Duration::from_millis(100);

/// pixman's names for four bytes a pixel, blue first.
const X8R8G8B8: u32 = 0x2002_0888;
const A8R8G8B8: u32 = 0x2002_8888;

/// No screen is wider or higher.
const SIDE_MAX: u32 = 16384;

/// What came of a wait.
pub(super) enum Next {
    Picture(RgbImage),
    /// The deadline.
    Nothing,
    /// This source is of no use, or of no use any more.
    Over,
}

/// A registered listener; QEMU lets it go when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    qmp: Qmp,
    _connections: [Connection; 2],
}

#[derive(Debug, Default)]
struct Shared {
    screen: Mutex<Screen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Screen {
    shape: Option<Shape>,
    dirty: bool,
    useless: bool,
}

/// The picture in shared memory; sizes in pixels, the rest in bytes.
#[derive(Debug, Clone)]
struct Shape {
    memory: Arc<File>,
    offset: u64,
    width: u32,
    height: u32,
    stride: u32,
}

impl Listener {
    /// `None` if this QEMU has no D-Bus display, or does not answer on it.
    pub(super) fn open(qmp: &Qmp) -> Option<Listener> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        qmp.send_fd("display", theirs.as_fd()).ok()?;
        drop(theirs);
        qmp.raw("add_client", json!({ "protocol": "@dbus-display", "fdname": "display" })).ok()?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let (sender, receiver) = mpsc::sync_channel(1);
        // A thread of its own, because only so the wait has a limit.
        thread::Builder::new()
            .name("display".into())
            .spawn(move || drop(sender.send(zbus::block_on(register(ours, for_thread)))))
            .ok()?;
        let connections = receiver.recv_timeout(OPEN_LIMIT).ok()?.ok()?;
        Some(Listener { shared, qmp: qmp.clone(), _connections: connections })
    }

    /// Waits for a change and reads the picture.
    pub(super) fn next(&mut self, deadline: Instant) -> Next {
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let screen = self.shared.lock();
            let waited = self
                .shared
                .changed
                .wait_timeout_while(screen, rest.min(SLICE), |screen| !screen.dirty && !screen.useless);
            let mut screen = waited.unwrap_or_else(PoisonError::into_inner).0;
            if screen.useless || self.qmp.gone().is_some() {
                return Next::Over;
            }
            if screen.dirty {
                screen.dirty = false;
                let shape = screen.shape.clone();
                drop(screen);
                match shape.as_ref().map(Shape::read) {
                    Some(Some(picture)) => return Next::Picture(picture),
                    Some(None) => return Next::Over,
                    None => {}
                }
            }
            if rest.is_zero() {
                return Next::Nothing;
            }
        }
    }
}

async fn register(
    ours: UnixStream,
    shared: Arc<Shared>,
) -> Result<[Connection; 2], Box<dyn std::error::Error + Send + Sync>> {
    const PATH: &str = "/org/qemu/Display1/Listener";
    let control = zbus::connection::Builder::async_io_unix_stream(ours).p2p().build().await?;
    let console = Console::new(&control, 0).await?;
    let (listening, for_qemu) = UnixStream::pair()?;
    console.proxy.register_listener(Fd::from(for_qemu.as_fd())).await?;
    drop(for_qemu);
    let listener = zbus::connection::Builder::async_io_unix_stream(listening)
        .p2p()
        .serve_at(PATH, Plain(Arc::clone(&shared)))?
        .serve_at(PATH, Map(shared))?
        .build()
        .await?;
    Ok([control, listener])
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Screen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The listener's basic interface. Its pictures are not used: see the top of the file.
struct Plain(Arc<Shared>);

#[zbus::interface(name = "org.qemu.Display1.Listener")]
impl Plain {
    fn scanout(&self, _width: u32, _height: u32, _stride: u32, _format: u32, _data: Vec<u8>) {
        self.0.change(|screen| screen.useless = true);
    }

    #[expect(clippy::too_many_arguments, reason = "QEMU's signature")]
    fn update(&self, _x: i32, _y: i32, _w: i32, _h: i32, _stride: u32, _format: u32, _data: Vec<u8>) {
        self.0.change(|screen| screen.useless = true);
    }

    /// The screen was turned off; QEMU's own placeholder is what `screendump` would show.
    fn disable(&self) {}

    fn mouse_set(&self, _x: i32, _y: i32, _on: i32) {}

    fn cursor_define(&self, _width: i32, _height: i32, _hot_x: i32, _hot_y: i32, _data: Vec<u8>) {}

    #[zbus(property)]
    fn interfaces(&self) -> Vec<String> {
        vec!["org.qemu.Display1.Listener.Unix.Map".into()]
    }
}

/// The listener's shared-memory interface.
struct Map(Arc<Shared>);

#[zbus::interface(name = "org.qemu.Display1.Listener.Unix.Map")]
impl Map {
    fn scanout_map(
        &self,
        memory: OwnedFd,
        offset: u32,
        width: u32,
        height: u32,
        stride: u32,
        format: u32,
    ) -> zbus::fdo::Result<()> {
        let memory = Arc::new(File::from(std::os::fd::OwnedFd::from(memory)));
        let fits = matches!(format, X8R8G8B8 | A8R8G8B8)
            && width <= SIDE_MAX
            && height <= SIDE_MAX
            && stride >= width * 4
            && stride <= SIDE_MAX * 8;
        self.0.change(|screen| {
            if fits {
                screen.shape = Some(Shape { memory, offset: offset.into(), width, height, stride });
                screen.dirty = true;
            } else {
                screen.useless = true;
            }
        });
        Ok(())
    }

    fn update_map(&self, _x: i32, _y: i32, _w: i32, _h: i32) -> zbus::fdo::Result<()> {
        self.0.change(|screen| screen.dirty = true);
        Ok(())
    }
}

impl Shape {
    /// `None` if the memory is shorter than QEMU said.
    fn read(&self) -> Option<RgbImage> {
        let mut bytes = vec![0; self.stride as usize * self.height as usize];
        self.memory.read_exact_at(&mut bytes, self.offset).ok()?;
        let mut rgb = Vec::with_capacity(self.width as usize * self.height as usize * 3);
        for row in bytes.chunks_exact(self.stride.max(1) as usize) {
            for pixel in row[..self.width as usize * 4].chunks_exact(4) {
                rgb.extend_from_slice(&[pixel[2], pixel[1], pixel[0]]);
            }
        }
        RgbImage::from_raw(self.width, self.height, rgb)
    }
}
