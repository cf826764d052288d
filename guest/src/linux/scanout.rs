//! Showing a picture on a card's own connector, as DRM master.
//!
//! The framebuffer console is no way to do this: `/dev/fb0` may belong to another card, and the console's cursor
//! leaves wrong pixels. The picture stays as long as the [`Scanout`] lives; then the kernel gives the screen back
//! to the console.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use drm::buffer::{Buffer, DrmFourcc};
use drm::control::dumbbuffer::DumbBuffer;
use drm::control::{ClipRect, Device as _, Mode, ModeTypeFlags, connector, crtc, framebuffer};
use no43_guest::pattern::Pattern;
use rustix::io::Errno;

/// A display device of which we are master.
struct Device(File);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Device {}
impl drm::control::Device for Device {}

/// A picture on the screen.
pub(super) struct Scanout {
    device: Device,
    /// The kernel's name of the connector, as `Virtual-1`.
    pub(super) connector: String,
    /// Width of the picture in pixels.
    pub(super) width: u32,
    /// Height of the picture in pixels.
    pub(super) height: u32,
}

/// Where the picture goes.
struct Output {
    connector: connector::Info,
    crtc: crtc::Handle,
    mode: Mode,
}

/// Fills the first connected connector (else any that has modes) of the device at `node` with the pattern of
/// `seed`, in its preferred mode.
///
/// # Errors
/// If another process is master of the device, it has no usable connector, or the kernel refuses a step.
pub(super) fn paint(node: &Path, seed: u64) -> Result<Scanout> {
    let file = OpenOptions::new().read(true).write(true).open(node);
    let device = Device(file.with_context(|| format!("failed to open {}", node.display()))?);
    drm::Device::acquire_master_lock(&device)
        .with_context(|| format!("failed to become DRM master of {}", node.display()))?;
    let output = choose_output(&device)?;
    let (width, height) = output.mode.size();
    let (width, height) = (u32::from(width), u32::from(height));
    let (mut buffer, framebuffer) = new_framebuffer(&device, width, height)?;
    show(&device, &output, framebuffer)?;
    fill(&device, &mut buffer, &Pattern::new(seed, width, height))?;
    flush(&device, &output, framebuffer)?;
    let connector = format!("{}-{}", output.connector.interface().as_str(), output.connector.interface_id());
    Ok(Scanout { device, connector, width, height })
}

impl Scanout {
    /// Whether the device still exists; a card can be unplugged while it shows a picture.
    pub(super) fn is_alive(&self) -> bool {
        self.device.resource_handles().is_ok()
    }
}

fn choose_output(device: &Device) -> Result<Output> {
    let resources = device.resource_handles().context("the device has no display resources")?;
    let mut usable = Vec::new();
    for handle in resources.connectors() {
        // `true` asks the hardware anew: nobody may have looked since the monitor came.
        let connector = device.get_connector(*handle, true).context("failed to read a connector")?;
        if let Some(mode) = preferred_mode(connector.modes()) {
            usable.push((connector, mode));
        }
    }
    let connected = usable.iter().position(|(c, _)| c.state() == connector::State::Connected);
    if usable.is_empty() {
        let count = resources.connectors().len();
        bail!("none of the {count} connectors has a monitor or a mode");
    }
    let (connector, mode) = usable.swap_remove(connected.unwrap_or(0));
    let crtc = crtc_for(device, &resources, &connector)?;
    Ok(Output { connector, crtc, mode })
}

fn preferred_mode(modes: &[Mode]) -> Option<Mode> {
    let preferred = modes.iter().find(|mode| mode.mode_type().contains(ModeTypeFlags::PREFERRED));
    preferred.or(modes.first()).copied()
}

/// The scan-out engine that the connector already uses, else the first that can feed it.
fn crtc_for(
    device: &Device,
    resources: &drm::control::ResourceHandles,
    connector: &connector::Info,
) -> Result<crtc::Handle> {
    let current = connector.current_encoder().and_then(|encoder| device.get_encoder(encoder).ok()?.crtc());
    if let Some(crtc) = current {
        return Ok(crtc);
    }
    let possible = connector.encoders().iter().filter_map(|encoder| device.get_encoder(*encoder).ok());
    let mut crtcs = possible.flat_map(|encoder| resources.filter_crtcs(encoder.possible_crtcs()));
    crtcs.next().context("no scan-out engine of the card can feed the connector")
}

fn new_framebuffer(device: &Device, width: u32, height: u32) -> Result<(DumbBuffer, framebuffer::Handle)> {
    let buffer = device
        .create_dumb_buffer((width, height), DrmFourcc::Xrgb8888, 32)
        .with_context(|| format!("failed to get {width}x{height} pixels of the card's memory"))?;
    let framebuffer = device.add_framebuffer(&buffer, 24, 32).context("the driver refuses XRGB8888")?;
    Ok((buffer, framebuffer))
}

fn show(device: &Device, output: &Output, framebuffer: framebuffer::Handle) -> Result<()> {
    let connectors = [output.connector.handle()];
    device
        .set_crtc(output.crtc, Some(framebuffer), (0, 0), &connectors, Some(output.mode))
        .context("failed to set the mode")?;
    hide_cursor(device, output.crtc);
    Ok(())
}

/// Draws the pattern. This comes after the mode is set: a standard VGA clears its memory when it is switched on,
/// and with it a picture that was drawn before, unless the console has switched it on already.
fn fill(device: &Device, buffer: &mut DumbBuffer, pattern: &Pattern) -> Result<()> {
    let pitch = buffer.pitch() as usize;
    let mut mapping = device.map_dumb_buffer(buffer).context("failed to map the picture's memory")?;
    for (y, line) in (0..pattern.height()).zip(mapping.as_mut().chunks_mut(pitch)) {
        let row = pattern.row_xrgb8888(y);
        line.get_mut(..row.len())
            .context("the kernel gave less memory than the picture needs")?
            .copy_from_slice(&row);
    }
    Ok(())
}

/// Makes sure that what was drawn reaches the card, and that the card still shows it.
fn flush(device: &Device, output: &Output, framebuffer: framebuffer::Handle) -> Result<()> {
    let (width, height) = output.mode.size();
    match device.dirty_framebuffer(framebuffer, &[ClipRect::new(0, 0, width, height)]) {
        Ok(()) => {}
        // Drivers that scan out of the buffer itself have nothing to flush and say so in three ways.
        Err(error) if is_one_of(&error, &[Errno::NOSYS, Errno::INVAL, Errno::OPNOTSUPP]) => {}
        Err(error) => return Err(error).context("failed to flush the picture to the card"),
    }
    let shown = device.get_crtc(output.crtc).context("failed to read the mode back")?.framebuffer();
    if shown != Some(framebuffer) {
        bail!("the driver accepted the picture but shows another one");
    }
    Ok(())
}

/// A cursor that an earlier master left on would be in the picture. Cards without a cursor refuse, which is fine.
#[expect(deprecated, reason = "the successor needs universal planes, which this program does not use")]
fn hide_cursor(device: &Device, crtc: crtc::Handle) {
    let _ = device.set_cursor(crtc, None::<&DumbBuffer>);
}

fn is_one_of(error: &std::io::Error, numbers: &[Errno]) -> bool {
    numbers.iter().any(|number| error.raw_os_error() == Some(number.raw_os_error()))
}
