//! Looking into a driver package against unpacking it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Bench, Figure, pairs, peak, timed};

/// A package of about the size of NVIDIA's: an INF with 3,000 cards, and 700 MB that do not compress.
const FILES: u32 = 70;
const FILE_BYTES: usize = 10 << 20;
const CARDS: u32 = 3000;

pub(super) fn driver(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let scratch = tempfile::tempdir()?;
    let package = package(scratch.path())?;
    let package = package.to_str().context("a folder with a printable name")?;
    let unpacked = scratch.path().join("unpacked");
    let unpack = || {
        let time = timed(Command::new("7zz").args(["x", "-y", "-bd", package]).arg({
            let mut out = std::ffi::OsString::from("-o");
            out.push(&unpacked);
            out
        }));
        fs::remove_dir_all(&unpacked).context("7zz unpacked nothing")?;
        time
    };
    let (ours, peer) = pairs(5, || timed(&mut b.no43(&["driver", "inspect", package])), unpack)?;
    let mut measured = Command::new("/usr/bin/time");
    measured.args(["-f", "%M"]).arg(&b.no43).args(["driver", "inspect", package]);
    let memory = peak(b, &mut measured)?;
    Ok(vec![
        Figure {
            name: "no43 driver inspect, 700 MB",
            ours,
            peer: Some(("7zz x", peer)),
            unit: "ms",
            aim: "at most 0.2",
        },
        Figure {
            name: "memory of no43 driver inspect",
            ours: vec![memory],
            peer: None,
            unit: "MiB",
            aim: "",
        },
    ])
}

fn package(dir: &Path) -> Result<std::path::PathBuf> {
    let (tree, path) = (dir.join("tree"), dir.join("466.11-desktop-win10-64bit-dch.7z"));
    fs::create_dir_all(tree.join("Display.Driver"))?;
    fs::write(tree.join("Display.Driver/nv_dispi.inf"), inf())?;
    fs::write(tree.join("setup.cfg"), "<setup title=\"466.11\"/>")?;
    let mut random = fs::File::open("/dev/urandom")?;
    for index in 0..FILES {
        let mut bytes = vec![0; FILE_BYTES];
        std::io::Read::read_exact(&mut random, &mut bytes)?;
        fs::write(tree.join(format!("Display.Driver/nv{index}.dl_")), bytes)?;
    }
    timed(Command::new("7zz").args(["a", "-mx=1", "-bd"]).arg(&path).arg(".").current_dir(&tree))?;
    fs::remove_dir_all(&tree)?;
    Ok(path)
}

fn inf() -> String {
    let mut text = "[Version]\nProvider=\"NVIDIA\"\nClass=Display\nDriverVer=03/17/2021, 27.21.14.6611\n[Manufacturer]\n\
                    \"NVIDIA\"=Devices,NTamd64.10.0...14393\n[Devices.NTamd64.10.0...14393]\n"
        .to_owned();
    for id in 0..CARDS {
        let _ = writeln!(text, "%NVIDIA_DEV.{id:04X}% = Section{:03}, PCI\\VEN_10DE&DEV_{id:04X}", id % 200);
    }
    text.push_str("[Strings]\n");
    for id in 0..CARDS {
        let _ = writeln!(text, "NVIDIA_DEV.{id:04X} = \"NVIDIA GeForce {id}\"");
    }
    text
}
