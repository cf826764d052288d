//! The pieces of work with Direct3D: a scene rendered on the adapter, read back, and compared.

use no43_guest::work::{WorkAdapter, WorkCause, WorkResult};
use std::time::Instant;

use super::target::renders_on_processor;
use super::{Stop, Task, metric, scene};
use crate::native::com::Failed;
use crate::native::d3d::{Absent, Picture, Problem, compile};
use crate::native::dxgi::{self, Adapter};
use crate::native::{d3d11, d3d12};

/// The shaders, with the entry points `vertex` and `pixel`; Windows' own compiler compiles them.
const SHADERS: &str = "\
struct V { float4 at: POSITION; float4 color: COLOR; };
struct P { float4 at: SV_Position; float4 color: COLOR; };
P vertex(V v) { P p; p.at = v.at; p.color = v.color; return p; }
float4 pixel(P p): SV_Target { return float4(p.color.rgb * p.color.rgb, p.color.a); }
";

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::call(failed.to_string())
    }
}

/// One version of Direct3D.
type Render = fn(&Adapter, &Picture<'_>) -> Result<Vec<u8>, Absent>;

pub(super) fn scene_11(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    scene("Direct3D 11", d3d11::render, task, result)
}

pub(super) fn scene_12(task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    scene("Direct3D 12", d3d12::render, task, result)
}

fn scene(interface: &str, render: Render, task: &Task, result: &mut WorkResult) -> Result<(), Stop> {
    let devices = adapters()?;
    let wine = dxgi::is_wine();
    let adapters: Vec<WorkAdapter> = devices.iter().map(|device| adapter(device, wine)).collect();
    let chosen = task.target.find(interface, &adapters)?;
    result.adapter = Some(adapters[chosen].clone());
    let shader = |entry, kind| {
        compile(SHADERS, entry, kind).map_err(|problem| match problem {
            Problem::Library(text) => Stop::new(WorkCause::NoLibrary, text),
            Problem::Compile(text) => Stop::call(text),
        })
    };
    let vertices = scene::vertices(task.seed);
    let picture = Picture {
        size: scene::SIZE as u32,
        vertices: &vertices,
        background: scene::BACKGROUND,
        vertex_shader: &shader(c"vertex", c"vs_5_0")?,
        pixel_shader: &shader(c"pixel", c"ps_5_0")?,
    };
    let start = Instant::now();
    let bytes = render(&devices[chosen], &picture).map_err(|absent| match absent {
        Absent::Library(text) => Stop::new(WorkCause::NoLibrary, text),
        Absent::Failed(failed) => failed.into(),
    })?;
    result.metrics.push(metric("time", start.elapsed().as_micros() as u64, "us"));
    let judged = scene::compare(&vertices, &bytes).map_err(|text| Stop::new(WorkCause::WrongAnswer, text))?;
    result.metrics.push(metric("pixels", judged.pixels as u64, "count"));
    result.metrics.push(metric("largest-difference", judged.largest.into(), "count"));
    Ok(())
}

pub(super) fn adapters() -> Result<Vec<Adapter>, Stop> {
    dxgi::adapters().map_err(|absent| match absent {
        dxgi::Absent::Library(text) => Stop::new(WorkCause::NoLibrary, text),
        // a system without any display, or Wine without a screen
        dxgi::Absent::Failed(failed) if failed.is_unsupported() => {
            Stop::new(WorkCause::NoComputeDevice, format!("DXGI has no adapter: {failed}"))
        }
        dxgi::Absent::Failed(failed) => failed.into(),
    })
}

pub(super) fn adapter(device: &Adapter, wine: bool) -> WorkAdapter {
    let software =
        wine || device.software || renders_on_processor(&device.name, device.vendor, device.device);
    let part = |version: u64, shift: u32| version >> shift & 0xffff;
    WorkAdapter {
        name: if wine { format!("{} (by Wine)", device.name) } else { device.name.clone() },
        address: device.place.map(|[bus, slot, function]| format!("0000:{bus:02x}:{slot:02x}.{function:x}")),
        id: Some(format!("{:04x}:{:04x}", device.vendor, device.device)),
        software: Some(software),
        driver: device
            .driver
            .map(|v| format!("{}.{}.{}.{}", part(v, 48), part(v, 32), part(v, 16), part(v, 0))),
        memory_bytes: Some(device.memory),
    }
}
