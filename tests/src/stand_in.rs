//! Makes the medium of the stand-in for Windows Setup (`tests/setup-stand-in`): a disc in UDF with an EFI boot image, as
//! Microsoft's are. Kernel and modules come out of the lab guest's image, programs from this host.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use no43_guest::setup::WINDOWS_PROGRAM;

use crate::programs;
use crate::scene::Scene;

/// Building the lab guest's image, where nobody did before.
const IMAGE_LIMIT: u64 = 1200;

/// Loaded in every stage: disks of any kind but virtio, media, file systems, the agent's port.
const BASE: &[&str] = &[
    "ahci",
    "sd_mod",
    "sr_mod",
    "xhci_pci",
    "usb_storage",
    "isofs",
    "udf",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "nls_iso8859_1",
    "vfat",
    "virtio_pci",
    "virtio_console",
    "pvpanic_mmio",
];
/// Loaded where an `.inf` for it is found.
const VIRTIO_DISK: &[&str] = &["virtio_blk"];

/// What a medium holds and plays.
#[derive(Debug, Clone)]
pub struct Medium {
    /// A word of `setup-stand-in/README.md`; empty for none.
    pub fault: &'static str,
    /// Of Setup and of the images, such as `fr-FR`.
    pub language: &'static str,
    /// Signed with the snakeoil key of the package ovmf.
    pub signed: bool,
}

impl Default for Medium {
    fn default() -> Self {
        Self { fault: "", language: "en-US", signed: false }
    }
}

/// The key that the firmware variables `OVMF_VARS_4M.snakeoil.fd` trust.
const SNAKEOIL_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
/// Its file is encrypted with this pass phrase, which the package publishes; sbsign takes none.
const SNAKEOIL_PHRASE: &str = "pass:snakeoil";
/// Without it, beside the payload.
const KEY: &str = "snakeoil.key";
const SNAKEOIL_PEM: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";

/// Kernel, initial RAM disk and loaders: the same on all media.
#[derive(Debug)]
pub struct Payload {
    dir: tempfile::TempDir,
}

impl Payload {
    /// Puts it together; takes some seconds, once the lab guest's image is there.
    pub fn make(scene: &Scene) -> Result<Self> {
        scene.shipped_recipes()?;
        let built =
            scene.no43(&["--json", "build", "recipes/lab-guest.toml"])?.limit(IMAGE_LIMIT).ok()?.json()?;
        let image = built["folder"].as_str().context("no folder of the image")?;
        let dir = tempfile::Builder::new().prefix("n43-stand-in-").tempdir()?;
        let at = dir.path();
        fs::copy(Path::new(image).join("kernel"), at.join("linux.efi"))?;
        let raw = at.join("guest.raw");
        tool(
            "qemu-img",
            [
                OsStr::new("convert"),
                "-O".as_ref(),
                "raw".as_ref(),
                Path::new(image).join("disk.qcow2").as_os_str(),
                raw.as_os_str(),
            ],
        )?;
        let root = at.join("root");
        for folder in ["bin", "sbin", "modules", "dev", "proc", "sys", "run", "tmp", "var"] {
            fs::create_dir_all(root.join(folder))?;
        }
        modules(&raw, &root.join("modules"))?;
        fs::remove_file(&raw)?;
        user_land(&root)?;
        let pack = format!("cd {} && find . | cpio --quiet -o -H newc > ../initrd.img", root.display());
        tool("sh", ["-c", &pack])?;
        fs::remove_dir_all(&root)?;
        for (name, defines) in
            [("prompt.efi", "-DPROMPT"), ("no-key.efi", "-DPROMPT -DIGNORE_KEYS"), ("loader.efi", "")]
        {
            loader(at, name, defines)?;
        }
        let key = at.join(KEY);
        tool(
            "openssl",
            [
                OsStr::new("pkey"),
                "-in".as_ref(),
                SNAKEOIL_KEY.as_ref(),
                "-passin".as_ref(),
                SNAKEOIL_PHRASE.as_ref(),
                "-out".as_ref(),
                key.as_os_str(),
            ],
        )?;
        Ok(Self { dir })
    }

    /// Removes it from the disk; for one that is kept in a static.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(self.dir.path());
    }

    /// Writes the medium to `iso`.
    pub fn medium(&self, medium: &Medium, iso: &Path) -> Result<()> {
        let work = tempfile::Builder::new().prefix("n43-medium-").tempdir()?;
        let tree = work.path().join("tree");
        for folder in ["boot", "efi/boot", "sources/stand-in"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        let at = self.dir.path();
        let prompt = if medium.fault == "no-key" { "no-key.efi" } else { "prompt.efi" };
        let part = |name: &str, to: &Path| -> Result<()> {
            if medium.signed && name.ends_with(".efi") {
                return tool(
                    "sbsign",
                    [
                        OsStr::new("--key"),
                        at.join(KEY).as_os_str(),
                        "--cert".as_ref(),
                        SNAKEOIL_PEM.as_ref(),
                        "--output".as_ref(),
                        to.as_os_str(),
                        at.join(name).as_os_str(),
                    ],
                );
            }
            fs::copy(at.join(name), to).map(drop).with_context(|| format!("failed to copy {name}"))
        };
        let on_disc = tree.join("sources/stand-in");
        part("linux.efi", &on_disc.join("linux.efi"))?;
        part("initrd.img", &on_disc.join("initrd.img"))?;
        part("loader.efi", &on_disc.join("loader.efi"))?;
        part(prompt, &tree.join("efi/boot/bootx64.efi"))?;
        let options = format!(
            "initrd=\\no43\\initrd.img console=tty0 quiet no43.stage=media no43.fault={}\n",
            medium.fault
        );
        fs::write(work.path().join("options.txt"), options)?;
        boot_image(&tree, &work.path().join("options.txt"))?;
        let images = image_xml("Windows 10 Pro", "Professional", medium.language);
        fs::write(tree.join("sources/install.wim"), wim(&images))?;
        fs::write(
            tree.join("sources/boot.wim"),
            wim(&image_xml("Microsoft Windows Setup (amd64)", "WindowsPE", medium.language)),
        )?;
        let mut make = Command::new("genisoimage");
        make.args([
            "-quiet",
            "-udf",
            "-J",
            "-iso-level",
            "3",
            "-V",
            "NO43_STAND_IN",
            "-e",
            "boot/efisys.bin",
            "-no-emul-boot",
            "-o",
        ]);
        output(make.arg(iso).arg(&tree))
    }
}

/// The El Torito image: a FAT with what the firmware and the loader need.
fn boot_image(tree: &Path, options: &Path) -> Result<()> {
    let sources = tree.join("sources/stand-in");
    let size = ["linux.efi", "initrd.img"]
        .iter()
        .map(|name| sources.join(name).metadata().map_or(0, |meta| meta.len()))
        .sum::<u64>();
    let image = tree.join("boot/efisys.bin");
    fs::File::create(&image)?.set_len((size + (4 << 20)).next_multiple_of(1 << 20))?;
    tool("/usr/sbin/mkfs.fat", [OsStr::new("-n"), "EFISYS".as_ref(), image.as_os_str()])?;
    let image = image.as_os_str();
    tool("mmd", [OsStr::new("-i"), image, "::EFI".as_ref(), "::EFI/BOOT".as_ref(), "::no43".as_ref()])?;
    let (linux, initrd, prompt) =
        (sources.join("linux.efi"), sources.join("initrd.img"), tree.join("efi/boot/bootx64.efi"));
    for (from, to) in [
        (linux.as_path(), "::no43/linux.efi"),
        (&initrd, "::no43/initrd.img"),
        (options, "::no43/options.txt"),
        (&prompt, "::EFI/BOOT/BOOTX64.EFI"),
    ] {
        tool("mcopy", [OsStr::new("-i"), image, from.as_os_str(), to.as_ref()])?;
    }
    Ok(())
}

/// gcc and ld of the host make the PE executable: position-independent code needs no relocation.
fn loader(at: &Path, name: &str, defines: &str) -> Result<()> {
    const FLAGS: &str = "-c -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fpie \
        -fno-ident -fno-merge-constants -mno-red-zone -fcf-protection=none -fshort-wchar -fvisibility=hidden";
    let (object, source) = (at.join("loader.o"), programs::root().join("tests/setup-stand-in/loader.c"));
    let mut gcc = Command::new("gcc");
    output(
        gcc.args(FLAGS.split_whitespace())
            .args(defines.split_whitespace())
            .arg("-o")
            .arg(&object)
            .arg(source),
    )?;
    let mut ld = Command::new("ld");
    ld.args([
        "-m",
        "i386pep",
        "--oformat",
        "pei-x86-64",
        "--subsystem",
        "10",
        "-e",
        "efi_main",
        "--image-base",
        "0",
    ]);
    output(ld.args(["--dynamicbase", "--exclude-all-symbols", "-s", "-o"]).arg(at.join(name)).arg(&object))
}

/// Copies the modules and what they need out of a raw ext4 image, and writes the lists in loading order.
fn modules(raw: &Path, to: &Path) -> Result<()> {
    let debugfs = |command: &str| -> Result<String> {
        let out = Command::new("/sbin/debugfs")
            .args(["-R", command])
            .arg(raw)
            .stderr(Stdio::null())
            .output()
            .context("failed to run debugfs")?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let kernels = debugfs("ls -p /lib/modules")?;
    // "/inode/mode/uid/gid/name/size/"
    let version = kernels
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .find(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let folder = format!("/lib/modules/{}", version.context("no kernel modules in the lab guest's image")?);
    let needs = debugfs(&format!("cat {folder}/modules.dep"))?;
    let needs: Vec<(&str, Vec<&str>)> = needs
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(own, others)| (own, others.split_whitespace().collect()))
        .collect();
    let name = |path: &str| {
        path.rsplit('/').next().unwrap_or(path).replace('-', "_").trim_end_matches(".ko").to_owned()
    };
    let mut done = BTreeSet::new();
    for (list, wanted) in [("base", BASE), ("virtio-disk", VIRTIO_DISK)] {
        let mut order = Vec::new();
        for module in wanted {
            let (own, others) = needs
                .iter()
                .find(|(path, _)| name(path) == *module)
                .with_context(|| format!("no module {module}"))?;
            // modules.dep names the deepest need last
            for path in others.iter().rev().chain([own]) {
                if done.insert((*path).to_owned()) {
                    let file = format!("{}.ko", name(path));
                    debugfs(&format!("dump {folder}/{path} {}", to.join(&file).display()))?;
                    ensure!(to.join(&file).exists(), "debugfs did not copy {path}");
                    order.push(file);
                }
            }
        }
        fs::write(to.join(format!("{list}.txt")), order.join("\n") + "\n")?;
    }
    Ok(())
}

/// Programs with the libraries that they are linked with.
fn user_land(root: &Path) -> Result<()> {
    let stand_in = built("no43-setup-stand-in")?;
    let programs = [
        (stand_in, "init"),
        (programs::guest()?, "bin/no43-guest"),
        (PathBuf::from("/usr/sbin/qemu-ga"), "bin/qemu-ga"),
        (PathBuf::from("/usr/sbin/mkfs.fat"), "bin/mkfs.fat"),
        (PathBuf::from("/bin/busybox"), "bin/busybox"),
    ];
    for (from, to) in programs {
        tool("strip", [OsStr::new("-o"), root.join(to).as_os_str(), from.as_os_str()])?;
        let Ok(linked) = Command::new("ldd").arg(&from).output() else { bail!("failed to run ldd") };
        for library in
            String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let to = root.join(library.trim_start_matches('/'));
            if !to.exists() {
                fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
                fs::copy(library, &to).with_context(|| format!("failed to copy {library}"))?;
            }
        }
    }
    std::os::unix::fs::symlink("/init", root.join("bin/cmd.exe"))?;
    for name in ["shutdown", "chpasswd"] {
        std::os::unix::fs::symlink("/init", root.join("sbin").join(name))?;
    }
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    // a name without '/', so the agent finds it in PATH as Windows finds it on C:
    std::os::unix::fs::symlink("no43-guest", root.join("bin").join(WINDOWS_PROGRAM))?;
    Ok(())
}

/// A program of this package, beside the test program itself.
fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folders = own.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: cargo build -p no43-tests"))
}

fn image_xml(name: &str, edition: &str, language: &str) -> String {
    format!(
        "<WIM><TOTALBYTES>208</TOTALBYTES><IMAGE INDEX=\"1\"><TOTALBYTES>1000000</TOTALBYTES><WINDOWS><ARCH>9</ARCH><PRODUCTNAME>Microsoft® Windows® \
         Operating System</PRODUCTNAME><EDITIONID>{edition}</EDITIONID><INSTALLATIONTYPE>Client</INSTALLATIONTYPE><LANGUAGES><LANGUAGE>{language}\
         </LANGUAGE><DEFAULT>{language}</DEFAULT></LANGUAGES><VERSION><MAJOR>10</MAJOR><MINOR>0</MINOR><BUILD>19045</BUILD><SPBUILD>2006</SPBUILD>\
         </VERSION></WINDOWS><NAME>{name}</NAME><DESCRIPTION>{name}</DESCRIPTION><DISPLAYNAME>{name}</DISPLAYNAME></IMAGE></WIM>"
    )
}

/// A WIM with no files in it: a header and its XML.
fn wim(xml: &str) -> Vec<u8> {
    const HEADER: usize = 208;
    let body: Vec<u8> =
        [0xff, 0xfe].into_iter().chain(xml.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let mut bytes = vec![0; HEADER];
    bytes[..8].copy_from_slice(b"MSWIM\0\0\0");
    bytes[8..12].copy_from_slice(&(HEADER as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&0x0001_0d00_u32.to_le_bytes());
    bytes[40..42].copy_from_slice(&1_u16.to_le_bytes()); // part 1 of 1
    bytes[42..44].copy_from_slice(&1_u16.to_le_bytes());
    bytes[44..48].copy_from_slice(&1_u32.to_le_bytes()); // images
    bytes[72..80].copy_from_slice(&(body.len() as u64 | 0x0200_0000_0000_0000).to_le_bytes());
    bytes[80..88].copy_from_slice(&(HEADER as u64).to_le_bytes());
    bytes[88..96].copy_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn tool<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    output(Command::new(program).args(arguments))
}

fn output(command: &mut Command) -> Result<()> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {shown}"))?;
    ensure!(out.status.success(), "{shown} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}
