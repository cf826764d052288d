//! Figures of media: a 5 GB ISO looked into, and set-up disks written.

use super::{Bench, Figure, pairs, timed};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The size of a Windows 11 `install.wim`.
const WIM_BYTES: u64 = 4_900_000_000;

/// `no43 media inspect` against what a person without it would type: list the disc, and ask for the WIM's facts. The
/// peer's WIM lies unpacked beside the disc: unpacking it (5 GB) would take it tens of seconds more.
pub(super) fn inspect(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let scratch = tempfile::Builder::new().prefix("no43-bench-").tempdir()?;
    let (iso, wim) = windows_disc(scratch.path())?;
    let iso = iso.to_str().context("the temporary folder's name is not UTF-8")?;
    let mut list = Command::new("7zz");
    list.args(["l", iso]);
    let mut facts = Command::new("wiminfo");
    facts.arg(&wim);
    let (ours, peer) = pairs(
        20,
        || timed(&mut b.no43(&["media", "inspect", iso])),
        || Ok(timed(&mut list)? + timed(&mut facts)?),
    )?;
    let shown = b.no43(&["media", "inspect", "--json", iso]).output()?;
    let shown: Value = serde_json::from_slice(&shown.stdout).context("media inspect printed no JSON")?;
    let read =
        shown.get("bytes-read").and_then(Value::as_f64).context("media inspect names no bytes-read")?;
    Ok(vec![
        Figure {
            name: "no43 media inspect, 5 GB ISO",
            ours,
            peer: Some(("7zz l + wiminfo (WIM unpacked before)", peer)),
            unit: "ms",
            aim: "under 20 ms",
        },
        Figure {
            name: "read by media inspect",
            ours: vec![read / 1_048_576.0],
            peer: None,
            unit: "MiB",
            aim: "under 2 MB",
        },
    ])
}

/// A disc in Microsoft's shape, with a thousand files and a WIM that is nearly all hole; returns disc and WIM.
fn windows_disc(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (root, tree) = (dir.join("root"), dir.join("tree"));
    let sources = root.join("sources");
    std::fs::create_dir_all(&sources)?;
    std::fs::create_dir_all(&tree)?;
    std::fs::write(tree.join("readme.txt"), "a small image")?;
    for n in 0..1000 {
        std::fs::write(sources.join(format!("module-{n:04}.dll")), [0; 100])?;
    }
    let wim = sources.join("install.wim");
    timed(Command::new("wimlib-imagex").arg("capture").args([&tree, &wim]).arg("Windows 10 Pro"))?;
    std::fs::copy(&wim, sources.join("boot.wim"))?;
    stretch(&wim)?;
    std::fs::write(root.join("README.TXT"), "This disc contains a UDF file system.")?;
    let iso = dir.join("windows.iso");
    let mut make = Command::new("genisoimage")
        .args(["-quiet", "-udf", "-iso-level", "3", "-allow-limited-size", "-V", "CCCOMA_X64FRE_EN-US_DV9"])
        .args(["-hide", "sources"])
        .arg(&root)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start genisoimage")?;
    let disc = make.stdout.take().context("genisoimage has no output")?;
    let written = write_sparse(disc, &iso);
    let status = make.wait()?;
    written?;
    ensure!(status.success(), "genisoimage ended with {status}");
    Ok((iso, wim))
}

/// Moves the XML of a WIM to the end of a file of [`WIM_BYTES`]; between lies a hole.
fn stretch(wim: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(wim)?;
    let mut entry = [0; 16];
    file.read_exact_at(&mut entry, 72)?;
    let size = u64::from_le_bytes(entry[..8].try_into()?) & 0x00ff_ffff_ffff_ffff;
    let mut xml = vec![0; usize::try_from(size)?];
    file.read_exact_at(&mut xml, u64::from_le_bytes(entry[8..].try_into()?))?;
    file.write_all_at(&xml, WIM_BYTES - size)?;
    file.write_all_at(&(WIM_BYTES - size).to_le_bytes(), 80)?;
    Ok(())
}

/// Blocks of zeros become holes.
fn write_sparse(mut from: impl std::io::Read, to: &Path) -> Result<()> {
    let mut out = File::create(to)?;
    let mut block = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let got = from.by_ref().take(block.len() as u64).read(&mut block)?;
        if got == 0 {
            break;
        }
        if block[..got].iter().any(|byte| *byte != 0) {
            out.seek(SeekFrom::Start(length))?;
            out.write_all(&block[..got])?;
        }
        length += got as u64;
    }
    out.set_len(length)?;
    Ok(())
}

/// Set-up disks: against one call of mcopy with a small tree, and against cp with a large one.
pub(super) fn setup_disk(b: &Bench<'_>) -> Result<Vec<Figure>> {
    let sh = b.sh;
    xshell::cmd!(sh, "cargo build -q --release -p no43-builder --example setup_disk")
        .quiet()
        .run()
        .context("failed to build builder's setup_disk")?;
    let program = b.guest.with_file_name("examples/setup_disk");
    let scratch = tempfile::Builder::new().prefix("no43-bench-").tempdir()?;
    let (image, plain, copy) =
        (scratch.path().join("ours.img"), scratch.path().join("plain.img"), scratch.path().join("copy"));
    // Neither side replaces a file: the file system would first write the old one's successor out.
    let ours = |tree: &Path| {
        let _ = std::fs::remove_file(&image);
        timed(Command::new(&program).arg(tree).arg(&image))
    };

    let written = plain_recipe(b, &program, scratch.path())?;
    let small = tree(scratch.path(), 220, 64 << 20)?;
    let mcopy = || {
        let _ = std::fs::remove_file(&plain);
        File::create(&plain)?.set_len(128 << 20)?;
        timed(Command::new("mkfs.fat").args(["-F", "32"]).arg(&plain))?;
        let folders =
            std::fs::read_dir(&small)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        timed(Command::new("mcopy").args(["-s", "-Q", "-i"]).arg(&plain).args(folders).arg("::"))
    };
    let (small_ours, small_peer) = pairs(10, || ours(&small), mcopy)?;
    std::fs::remove_dir_all(&small)?;

    let large = tree(scratch.path(), 5000, 1500 << 20)?;
    let cp = || {
        let time = timed(Command::new("cp").arg("-r").args([&large, &copy]))?;
        std::fs::remove_dir_all(&copy)?;
        Ok(time)
    };
    let (large_ours, large_peer) = pairs(3, || ours(&large), cp)?;
    Ok(vec![
        Figure {
            name: "set-up disk, 220 files, 64 MB",
            ours: small_ours,
            peer: Some(("one call of mcopy", small_peer)),
            unit: "ms",
            aim: "not slower",
        },
        Figure {
            name: "set-up disk, 5000 files, 1.5 GB",
            ours: large_ours,
            peer: Some(("cp -r", large_peer)),
            unit: "ms",
            aim: "at least 80 % of its speed: ratio at most 1.25",
        },
        Figure {
            name: "written for media, plain recipe",
            ours: vec![written],
            peer: Some(("the ISO once more, as a remaster writes it", vec![WIM_BYTES as f64 / 1_048_576.0])),
            unit: "MiB",
            aim: "ratio under 0.01",
        },
    ])
}

/// What a plain recipe's set-up disk takes on this host's disk, in MiB: the guest program as it is built for Windows, an
/// answer file, and generous room for the files of two virtio drivers.
fn plain_recipe(b: &Bench<'_>, program: &Path, dir: &Path) -> Result<f64> {
    let target = b.guest.ancestors().nth(2).context("the guest program lies in a target folder")?;
    let exe = target.join("x86_64-pc-windows-gnu/windows/no43-guest.exe");
    crate::binaries::windows_build_command(b.sh)?.quiet().run().context("failed to build no43-guest.exe")?;
    let tree = dir.join("plain-recipe");
    std::fs::create_dir_all(&tree)?;
    std::fs::copy(&exe, tree.join("no43-guest.exe"))
        .with_context(|| format!("failed to copy {}", exe.display()))?;
    for (name, bytes) in [
        ("Autounattend.xml", 16 << 10),
        ("plan.json", 16 << 10),
        ("viostor", 256 << 10),
        ("NetKVM", 512 << 10),
    ] {
        std::fs::write(tree.join(name), vec![1; bytes])?;
    }
    let image = dir.join("plain-recipe.img");
    timed(Command::new(program).arg(&tree).arg(&image))?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image)?);
    Ok(blocks as f64 * 512.0 / 1_048_576.0)
}

/// A folder with so many files in twenty folders, of `bytes` in all that no file system can leave out.
fn tree(dir: &Path, files: u64, bytes: u64) -> Result<PathBuf> {
    let root = dir.join("tree");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut contents = vec![0; usize::try_from(bytes / files)?];
    for chunk in contents.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    for n in 0..files {
        let folder = root.join(format!("folder {}", n % 20));
        std::fs::create_dir_all(&folder)?;
        let mut file = File::create(folder.join(format!("a file with a long name, number {n}.bin")))?;
        file.write_all(&n.to_le_bytes())?;
        file.write_all(&contents[8..])?;
    }
    Ok(root)
}
