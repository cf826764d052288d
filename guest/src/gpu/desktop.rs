//! The desktop that a card shows, as a picture: which outputs of the adapter are part of the desktop, and what is on the first.

use no43_guest::work::{WorkAdapter, WorkCause, WorkResult};

use super::direct3d::{adapter, adapters};
use super::{Stop, Task, metric};
use crate::native::dxgi::{self, Output};
use crate::native::screen::{self, Part};

/// The file in the folder of `--out`.
const FILE: &str = "desktop.png";

pub(super) fn picture(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    let devices = adapters()?;
    let wine = dxgi::is_wine();
    let named: Vec<WorkAdapter> = devices.iter().map(|device| adapter(device, wine)).collect();
    let chosen = task.target.find("DXGI", &named)?;
    result.adapter = Some(named[chosen].clone());
    let outputs: Vec<Output> =
        devices[chosen].outputs().into_iter().filter(|output| output.attached).collect();
    result.metrics.push(metric("outputs", outputs.len() as u64, "count"));
    let Some(Output { part, .. }) = outputs.first() else {
        let reason =
            "no output of the card is part of the desktop: it has no monitor, or Windows does not use it";
        return Err(Stop::new(WorkCause::NotSupported, reason));
    };
    let pixels = screen::capture(*part).map_err(Stop::call)?;
    result.metrics.push(metric("width", part.width.into(), "count"));
    result.metrics.push(metric("height", part.height.into(), "count"));
    keep(task, result, *part, &pixels)?;
    let first = pixels.first_chunk::<3>().copied().unwrap_or_default();
    if pixels.as_chunks::<3>().0.iter().all(|pixel| *pixel == first) {
        let [red, green, blue] = first;
        let reason =
            format!("the desktop is #{red:02x}{green:02x}{blue:02x} all over: nothing is shown on it");
        return Err(Stop::new(WorkCause::WrongAnswer, reason));
    }
    Ok(())
}

/// Writes the picture where somebody wants it.
fn keep(task: &Task, result: &mut WorkResult, part: Part, pixels: &[u8]) -> Result<(), Stop> {
    let Some(folder) = &task.out else { return Ok(()) };
    let file = folder.join(FILE);
    let write = || -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(std::fs::File::create(&file)?, part.width, part.height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()
    };
    write().map_err(|error| Stop::call(format!("failed to write {}: {error}", file.display())))?;
    result.picture = Some(FILE.to_owned());
    Ok(())
}
