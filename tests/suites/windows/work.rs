//! GPU work under Wine: Direct3D on renderers in software, and libraries of our own in the place of NVIDIA's.

use anyhow::{Context, Result, ensure};
use no43_guest::work::{WorkCause, WorkOutcome, WorkResult};
use no43_tests::{Scene, Screen, Wine};
use std::fs;
use std::path::Path;

use crate::cards::DEVICE;

/// What is done for a card of NVIDIA's.
pub(crate) const DEFAULT_WORK: &[&str] = &[
    "cuda-checksum",
    "cuda-memory",
    "cuda-copy",
    "vulkan-compute",
    "nvenc-frame",
    "d3d11-scene",
    "d3d12-scene",
];

/// Wine's Direct3D, on Mesa's OpenGL and Vulkan: both render on the processor, and Wine names its adapter after some card.
pub(crate) fn direct3d(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    wine.cut_power()?; // what runs already knows no screen
    let screen = Screen::start()?;
    let work = |words: &[&str]| -> Result<Vec<WorkResult>> {
        let both = ["work", "--json", "--only", "d3d11-scene", "--only", "d3d12-scene"];
        let seen = screen.of(wine.guest(&[&both, words].concat())?).ok()?;
        Ok(no43_guest::work::parse_work(seen.stdout.as_bytes())?.results)
    };
    let mut shown = None;
    for seed in ["43", "4294967295"] {
        for result in work(&["--adapter", "software", "--seed", seed])? {
            let metric = |name: &str| result.metrics.iter().find(|m| m.name == name).map_or(0, |m| m.value);
            let (pixels, off) = (metric("pixels"), metric("largest-difference"));
            println!("  {}: {} ms, {pixels} pixels, off by {off} at most", result.name, result.duration_ms);
            ensure!(result.outcome == WorkOutcome::Passed && pixels > 60_000 && off <= 3, "{result:?}");
            let adapter = result.adapter.context("no adapter")?;
            ensure!(adapter.software == Some(true) && adapter.name.ends_with("(by Wine)"), "{adapter:?}");
            shown = adapter.id;
        }
    }
    desktop(scene, &wine, &screen)?;
    // Asked for as the card that it says it is.
    let results = work(&["--adapter", &shown.context("no id")?])?;
    let soft = |r: &WorkResult| (r.outcome, r.cause) == (WorkOutcome::Skipped, Some(WorkCause::OnlySoftware));
    ensure!(results.len() == 2 && results.iter().all(soft), "{results:?}");
    Ok(())
}

/// Libraries that the test compiles, in the system's folder, where the program looks for them first.
const NVIDIA: &[(&str, &str)] =
    &[("cuda.c", "nvcuda.dll"), ("nvenc.c", "nvEncodeAPI64.dll"), ("optix.c", "nvoptix.dll")];

pub(crate) fn nvidia(scene: &Scene) -> Result<()> {
    let wine = Wine::of(scene)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/tests/fake");
    for (source, library) in NVIDIA {
        let compiler = scene.run("x86_64-w64-mingw32-gcc").args(["-shared", "-O1", "-s", "-o"]);
        compiler.args([wine.drive_c("windows/system32").join(library), sources.join(source)]).ok()?;
    }
    let work = |name: &str, defect: &str| -> Result<WorkResult> {
        let words = ["work", "--json", "--adapter", "10de:2484@0000:01:00.0", "--only", name];
        let run = wine.guest(&words)?.env("FAKE_ADDRESS", "0000:01:00.0");
        let run = run.env("FAKE_NVENC", defect).env("FAKE_OPTIX", defect);
        let mut results = no43_guest::work::parse_work(run.done()?.stdout.as_bytes())?.results;
        results.pop().context("no result")
    };
    for name in ["cuda-checksum", "nvenc-frame", "optix-trace"] {
        let result = work(name, "nothing")?;
        println!("  {name}: {} ms", result.duration_ms);
        ensure!(result.outcome == WorkOutcome::Passed, "{result:?}");
        ensure!(result.adapter.is_some_and(|adapter| adapter.name == "Fake GeForce"), "{name}");
    }
    for (name, defect) in [("nvenc-frame", "frozen"), ("optix-trace", "first")] {
        let result = work(name, defect)?;
        ensure!(result.cause == Some(WorkCause::WrongAnswer), "{result:?}");
    }
    driver_store(&wine, &|| work("optix-trace", "nothing"))?;
    for (_, library) in &NVIDIA[..2] {
        fs::remove_file(wine.drive_c("windows/system32").join(library))?; // the prefix is the suite's
    }
    Ok(())
}

/// Drivers of today keep OptiX in a folder of their own, which the registry tells by the library of OpenGL.
fn driver_store(wine: &Wine<'_>, trace: &dyn Fn() -> Result<WorkResult>) -> Result<()> {
    let folder = "windows/system32/DriverStore/FileRepository/nv_no43.inf_amd64_1";
    fs::create_dir_all(wine.drive_c(folder))?;
    let library = wine.drive_c(folder).join("nvoptix.dll");
    fs::rename(wine.drive_c("windows/system32/nvoptix.dll"), &library)?;
    let nowhere = trace()?;
    ensure!(nowhere.cause == Some(WorkCause::NoLibrary), "{nowhere:?}");
    let (guid, number) = ("{4D36E968-E325-11CE-BFC1-08002BE10318}", "0043");
    let device = DEVICE.replace("HKEY_LOCAL_MACHINE", "HKLM");
    let class = format!(r"HKLM\SYSTEM\CurrentControlSet\Control\Class\{guid}\{number}");
    let opengl = format!(r"C:\{}\nvoglv64.dll", folder.replace('/', r"\"));
    for (key, name, kind, value) in [
        (&device, "ClassGUID", "REG_SZ", guid),
        (&device, "Driver", "REG_SZ", &format!(r"{guid}\{number}")),
        (&class, "OpenGLDriverName", "REG_MULTI_SZ", &opengl),
    ] {
        wine.wine(["reg", "add", key, "/v", name, "/t", kind, "/d", value, "/f"]).ok()?;
    }
    let found = trace()?;
    println!("  optix-trace from the driver store: {} ms", found.duration_ms);
    ensure!(found.outcome == WorkOutcome::Passed, "{found:?}");
    fs::remove_file(library)?;
    for key in [&device, &class] {
        wine.wine(["reg", "delete", key, "/f"]).ok()?;
    }
    Ok(())
}

/// The screen's woven ground as a picture; and what is said where the picture has to be taken in another session.
fn desktop(scene: &Scene, wine: &Wine<'_>, screen: &Screen) -> Result<()> {
    let work = |words: &[&str]| -> Result<WorkResult> {
        let all = ["work", "--json", "--adapter", "software", "--only", "desktop-picture", "--out", r"F:\"];
        let seen = screen.of(wine.guest(&[&all, words].concat())?).done()?;
        let mut results = no43_guest::work::parse_work(seen.stdout.as_bytes())?.results;
        results.pop().with_context(|| format!("no result: {seen:?}"))
    };
    let result = work(&[])?;
    println!("  {}: {} ms, {:?}", result.name, result.duration_ms, result.metrics);
    ensure!(
        result.outcome == WorkOutcome::Passed && result.picture.as_deref() == Some("desktop.png"),
        "{result:?}"
    );
    let picture = image::open(scene.work().join("desktop.png"))?.into_rgb8();
    let mut shades = picture.pixels().map(|pixel| pixel.0).collect::<Vec<_>>();
    shades.sort_unstable();
    shades.dedup();
    ensure!(picture.dimensions() == (640, 480) && shades == [[0; 3], [255; 3]], "{shades:?}");
    // Wine's scheduler takes the task, and never runs any.
    let handed = work(&["--hand-over", "--limit-seconds", "4"])?;
    println!("  handed over: {:?}", handed.reason);
    ensure!((handed.outcome, handed.cause) == (WorkOutcome::Failed, Some(WorkCause::TimedOut)), "{handed:?}");
    let left = fs::read_dir(wine.drive_c("ProgramData/no43"))?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("no43-hand-over")).collect();
    ensure!(left.is_empty(), "{left:?} is left of a task");
    Ok(())
}
