//! Media made by genisoimage, mkudffs and wimlib, and what is wrong with them.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::super::BootAuthority;
use super::*;

/// What Windows 10's own XML looks like, with two editions.
pub(crate) const XML: &str = "<WIM><TOTALBYTES>1</TOTALBYTES>\
    <IMAGE INDEX=\"1\"><TOTALBYTES>14000000000</TOTALBYTES><WINDOWS><ARCH>9</ARCH><EDITIONID>Core</EDITIONID>\
    <INSTALLATIONTYPE>Client</INSTALLATIONTYPE><LANGUAGES><LANGUAGE>fr-FR</LANGUAGE><DEFAULT>fr-FR</DEFAULT></LANGUAGES>\
    <VERSION><MAJOR>10</MAJOR><MINOR>0</MINOR><BUILD>19045</BUILD><SPBUILD>2965</SPBUILD></VERSION></WINDOWS>\
    <NAME>Windows 10 Famille</NAME></IMAGE>\
    <IMAGE INDEX=\"6\"><TOTALBYTES>15129349581</TOTALBYTES><WINDOWS><ARCH>9</ARCH><EDITIONID>Professional</EDITIONID>\
    <INSTALLATIONTYPE>Client</INSTALLATIONTYPE><LANGUAGES><LANGUAGE>fr-FR</LANGUAGE><DEFAULT>fr-FR</DEFAULT></LANGUAGES>\
    <VERSION><MAJOR>10</MAJOR><MINOR>0</MINOR><BUILD>19045</BUILD><SPBUILD>2965</SPBUILD></VERSION></WINDOWS>\
    <NAME>Windows 10 Professionnel</NAME></IMAGE></WIM>";

/// Runs a tool that makes test media; these are packages of `ci/test`.
pub(crate) fn tool(command: &mut Command) {
    let output = command.env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} (see no43-ci packages): {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder that becomes a disc.
pub(crate) struct Disc {
    pub(crate) dir: TempDir,
}

impl Disc {
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// With the files of Windows 10.
    pub(crate) fn windows() -> Self {
        let disc = Self::empty();
        disc.file("sources/install.wim", &wim::tests::file(XML));
        disc.file("sources/boot.wim", &wim::tests::file(&XML.replace("Professional", "WindowsPE")));
        disc.file("sources/ei.cfg", b"[EditionID]\r\n\r\n[Channel]\r\nRetail\r\n[VL]\r\n0\r\n");
        disc.file("efi/boot/bootx64.efi", b"MZ, not signed");
        disc
    }

    pub(crate) fn file(&self, name: &str, contents: &[u8]) {
        let path = self.dir.path().join("root").join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        fs::write(path, contents).expect("a file");
    }

    /// The shape of Microsoft's media: ISO 9660 shows a readme only, UDF everything.
    pub(crate) fn iso(&self) -> PathBuf {
        self.file("README.TXT", b"This disc contains a \"UDF\" file system.");
        let iso = self.dir.path().join("win.iso");
        let mut command = Command::new("genisoimage");
        command.args([
            "-quiet",
            "-udf",
            "-iso-level",
            "3",
            "-allow-limited-size",
            "-V",
            "CCCOMA_X64FRE_FR-FR_DV9",
        ]);
        command.args(["-hide", "sources", "-hide", "efi"]);
        tool(command.arg("-o").arg(&iso).arg(self.dir.path().join("root")));
        iso
    }

    fn inspect(&self) -> Result<Media, MediaError> {
        inspect(&self.iso())
    }
}

fn refused(disc: &Disc) -> String {
    let error = disc.inspect().expect_err("not a good medium").to_string();
    error.replace(&disc.dir.path().display().to_string(), "DIR")
}

#[test]
fn a_medium_in_microsofts_shape_is_read_with_few_bytes() {
    let disc = Disc::windows();
    let (media, read) = inspect_counted(&disc.iso()).expect("a medium");
    assert_eq!(media.label, "CCCOMA_X64FRE_FR-FR_DV9");
    assert_eq!(media.architecture, "amd64");
    assert_eq!(media.channel, Channel::Retail);
    assert_eq!(media.install_file, "sources/install.wim");
    assert_eq!(media.setup_languages, ["fr-FR"]);
    assert_eq!(media.system().map(|system| system.os), Some("windows10"));
    let pro = media.image("Professional").expect("there");
    assert_eq!((pro.index, pro.build(), pro.bytes), (6, Some(19045), Some(15_129_349_581)));
    assert_eq!(media.boot_signers, [""; 0]);
    assert!(read < 200_000, "{read} bytes");
}

#[test]
fn wimlibs_own_images_are_read_as_it_describes_them() {
    let disc = Disc::empty();
    disc.file("tree/Windows/readme.txt", b"hello");
    let root = disc.dir.path().join("root");
    let wim = root.join("sources/install.wim");
    fs::create_dir_all(root.join("sources")).expect("a folder");
    let mut capture = Command::new("wimlib-imagex");
    capture.args(["capture", "--compress=LZX"]).arg(root.join("tree"));
    tool(capture.arg(&wim).args(["Windows Server 2022 SERVERSTANDARD", "description"]));
    let mut describe = Command::new("wimlib-imagex");
    describe.arg("info").arg(&wim).arg("1");
    for property in [
        "ARCH=9",
        "EDITIONID=ServerStandardEval",
        "INSTALLATIONTYPE=Server",
        "LANGUAGES/LANGUAGE[1]=en-US",
        "LANGUAGES/LANGUAGE[2]=fr-FR",
        "LANGUAGES/DEFAULT=en-US",
        "VERSION/MAJOR=10",
        "VERSION/MINOR=0",
        "VERSION/BUILD=20348",
        "VERSION/SPBUILD=587",
    ] {
        describe.arg(format!("--image-property=WINDOWS/{property}"));
    }
    tool(&mut describe);
    let media = disc.inspect().expect("a medium");
    assert_eq!((media.channel, media.evaluation_days), (Channel::Evaluation, Some(180)));
    assert_eq!(media.system().map(|system| system.virtio), Some("2k22"));
    assert_eq!(media.images[0].languages, ["en-US", "fr-FR"]);
    assert_eq!(media.images[0].version.as_deref(), Some("10.0.20348.587"));
    assert!(!media.esd);
}

#[test]
fn a_disc_of_mkudffs_is_read_too() {
    let disc = Disc::empty();
    let image = disc.dir.path().join("disc.udf");
    File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("room");
    for block in ["2048", "512"] {
        let mut command = Command::new("mkudffs");
        command.args(["--utf8", "--media-type=hd", "--label=Été", "--udfrev=0x0201"]);
        tool(command.arg(format!("--blocksize={block}")).arg(&image));
        let error = inspect(&image).expect_err("there is nothing on it").to_string();
        assert!(error.contains("the disc 'Été' has no sources/install.wim"), "{error}");
    }
}

#[test]
fn an_esd_is_said_to_be_one() {
    let disc = Disc::windows();
    let mut esd = wim::tests::file(XML);
    esd[16..20].copy_from_slice(&0x0008_0000u32.to_le_bytes());
    disc.file("sources/install.esd", &esd);
    fs::remove_file(disc.dir.path().join("root/sources/install.wim")).expect("there");
    let media = disc.inspect().expect("Setup takes ESD");
    assert!(media.esd);
    assert_eq!(media.install_file, "sources/install.esd");
}

#[test]
fn split_images_need_all_parts() {
    let disc = Disc::windows();
    let mut swm = wim::tests::file(XML);
    swm[40..44].copy_from_slice(&[1, 0, 3, 0]);
    disc.file("sources/install.swm", &swm);
    disc.file("sources/install2.swm", b"MSWIM");
    fs::remove_file(disc.dir.path().join("root/sources/install.wim")).expect("there");
    assert_eq!(
        refused(&disc),
        "DIR/win.iso holds part 1 of 3 as sources/install.swm, and sources/install3.swm is not there"
    );
}

#[test]
fn a_cut_medium_says_which_file_is_not_whole() {
    let disc = Disc::windows();
    disc.file("sources/install.wim", &[&wim::tests::file(XML)[..], &vec![7; 1 << 20]].concat());
    let iso = disc.iso();
    let file = File::options().write(true).open(&iso).expect("there");
    let whole = file.metadata().expect("there").len();
    for (bytes, what) in
        [(whole - (700 << 10), "sources/install.wim reaches to byte"), (400 << 10, "cut off")]
    {
        file.set_len(bytes).expect("cut");
        let error = inspect(&iso).expect_err("cut").to_string();
        assert!(error.contains(what) && error.contains(&format!("the file has {bytes}")), "{error}");
    }
}

#[test]
fn other_discs_and_files_are_told_apart() {
    let disc = Disc::empty();
    disc.file("boot/grub.cfg", b"");
    let empty = refused(&disc);
    let iso = disc.dir.path().join("linux.iso");
    let mut command = Command::new("genisoimage");
    command.args(["-quiet", "-J", "-V", "virtio-win-0.1.285", "-o"]);
    tool(command.arg(&iso).arg(disc.dir.path().join("root")));
    let said = |contents: Option<&[u8]>| {
        if let Some(contents) = contents {
            fs::write(&iso, contents).expect("written");
        }
        let error = inspect(&iso).expect_err("not a medium").to_string();
        error.lines().next().unwrap_or_default().replace(&iso.display().to_string(), "FILE")
    };
    let page = b"<!DOCTYPE html><title>Sign in</title>";
    let wim = wim::tests::file(XML);
    let files = [None, Some(&page[..]), Some(&wim[..]), Some(b""), Some(&[7; 40000])];
    let lines: Vec<String> = std::iter::once(empty).chain(files.map(said)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    DIR/win.iso installs no Windows: the disc 'CCCOMA_X64FRE_FR-FR_DV9' has no sources/install.wim, install.esd or install.swm; at its top are README.TXT, boot
        fix   name the ISO as Microsoft ships it
    FILE is not a Windows ISO, but an ISO 9660 disc 'virtio-win-0.1.285' without UDF
    FILE is not a Windows ISO, but an HTML page ('<!DOCTYPE html><title>Sign in</title>…')
    FILE is not a Windows ISO, but a bare WIM or ESD file
    FILE is not a Windows ISO, but an empty file
    FILE is not a Windows ISO, but something that begins with '\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07' and has no UDF volume
    ");
    let error = inspect(Path::new("/nowhere/win.iso")).expect_err("not there").to_string();
    assert!(error.contains("/nowhere/win.iso"), "{error}");
}

#[test]
fn a_medium_for_two_architectures_is_refused() {
    let disc = Disc::windows();
    let sources = disc.dir.path().join("root/sources");
    fs::create_dir_all(disc.dir.path().join("root/x64")).expect("a folder");
    fs::rename(&sources, disc.dir.path().join("root/x64/sources")).expect("moved");
    disc.file("x86/sources/install.wim", &wim::tests::file(XML));
    let error = refused(&disc);
    assert!(error.contains("x64/sources/install.wim, x86/sources/install.wim"), "{error}");
}

#[test]
fn another_architecture_is_a_fact_and_a_mismatch() {
    let disc = Disc::windows();
    disc.file("sources/install.wim", &wim::tests::file(&XML.replace("<ARCH>9<", "<ARCH>12<")));
    let media = disc.inspect().expect("a medium");
    assert_eq!(media.architecture, "arm64");
    let mismatch = media.check(super::super::Wanted::default());
    assert_eq!(mismatch[0].what, "the media is Windows for arm64, the machine is amd64");
}

#[test]
fn the_channel_comes_from_the_editions_and_from_ei_cfg() {
    let images = |editions: &[&str]| -> Vec<WimImage> {
        let image =
            |edition: &&str| WimImage { edition_id: Some((*edition).to_owned()), ..WimImage::default() };
        editions.iter().map(image).collect()
    };
    let retail = b"[EditionID]\r\n\r\n[Channel]\r\nRetail\r\n[VL]\r\n0\r\n";
    assert_eq!(channel(&images(&["Professional"]), Some(retail)), Channel::Retail);
    assert_eq!(channel(&images(&["Professional"]), Some(b"[Channel]\r\nVolume\r\n")), Channel::Volume);
    assert_eq!(channel(&images(&["EnterpriseEval"]), Some(retail)), Channel::Evaluation);
    assert_eq!(channel(&images(&["Professional"]), None), Channel::Unknown);
}

#[test]
fn the_newer_authority_wins_where_both_have_signed() {
    let disc = Disc::windows();
    let mut media = disc.inspect().expect("a medium");
    assert_eq!(media.boot_authority(), None);
    media.boot_signers = vec!["Microsoft Windows Production PCA 2011".into()];
    assert_eq!(media.boot_authority(), Some(BootAuthority::Windows2011));
    media.boot_signers.push("Windows UEFI CA 2023".into());
    assert_eq!(media.boot_authority(), Some(BootAuthority::Windows2023));
}

/// The disc's bytes, with which the parsers can be tried out in memory.
fn bytes_of_a_disc() -> &'static Vec<u8> {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| fs::read(Disc::windows().iso()).expect("made"))
}

fn inspect_bytes(bytes: Vec<u8>) -> Result<Media, MediaError> {
    let length = bytes.len() as u64;
    let (path, source) = (Path::new("win.iso"), Source::new(bytes, length));
    Inspector { path, source: &source, udf: open(path, &source)? }.media()
}

/// The bytes that hold structures: everything else on this disc is zero.
fn places() -> &'static Vec<usize> {
    static PLACES: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    let written = |(at, byte): (usize, &u8)| (*byte != 0).then_some(at);
    PLACES.get_or_init(|| bytes_of_a_disc().iter().enumerate().filter_map(written).collect())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn damage_anywhere_is_never_a_panic(at: proptest::sample::Index, change in 1u8.., cut: bool) {
        let mut bytes = bytes_of_a_disc().clone();
        let at = places()[at.index(places().len())];
        bytes[at] ^= change;
        if cut {
            bytes.truncate(at);
        }
        if let Err(error) = inspect_bytes(bytes) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }
}
