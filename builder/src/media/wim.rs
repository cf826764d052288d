//! The head and the XML of a Windows image file (WIM, ESD, SWM), read in place; nothing is unpacked.
//!
//! A WIM begins with a 208-byte header; its XML is stored plain (UTF-16LE with a byte order mark) near the file's end.
//! Fields, all little-endian: magic at 0, flags at 16, parts at 40 and 42, image count at 44, and the XML's resource
//! entry at 72: size in the low 56 bits, then its offset at 80.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use quick_xml::Reader;
use quick_xml::events::Event;
use serde::{Deserialize, Serialize};

const HEADER: usize = 208;
const MAGIC: &[u8; 8] = b"MSWIM\0\0\0";
/// Far above what is seen (a retail ISO with eleven editions has 30 KiB).
const XML_LIMIT: u64 = 4 << 20;
/// "Solid" compression, which only ESD files use.
const FLAG_LZMS: u32 = 0x0008_0000;
/// More are never seen; a file that claims more is damaged.
const IMAGES_LIMIT: u32 = 1000;

/// Why a file is not a usable Windows image file.
#[derive(Debug, thiserror::Error)]
pub enum WimError {
    /// It ends before its header or XML does.
    #[error("ends early: {what} lies beyond its end")]
    Truncated {
        /// What is missing.
        what: &'static str,
    },
    /// The first eight bytes are others.
    #[error("is not a Windows image file: it begins with {0:02x?}")]
    NotWim(Vec<u8>),
    /// The header holds a value that cannot be.
    #[error("has a damaged header: {0}")]
    Damaged(String),
    /// The XML is not what Windows writes.
    #[error("has unreadable XML: {0}")]
    Xml(String),
    /// Reading failed.
    #[error("failed to read: {0}")]
    Io(#[from] io::Error),
}

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wim {
    /// Compressed as a whole (ESD); Setup takes it, offline tools often do not.
    pub esd: bool,
    /// Part number and number of parts; `(1, 1)` for a whole file.
    pub part: (u16, u16),
    /// In the order of the file.
    pub images: Vec<WimImage>,
}

/// One image: an edition that can be installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WimImage {
    /// Counts from 1: the value for `/IMAGE/INDEX`.
    pub index: u32,
    /// The value for `/IMAGE/NAME`; translated on some media.
    pub name: String,
    /// Such as `Professional` or `EnterpriseEval`; the same in every language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edition_id: Option<String>,
    /// `Client`, `Server`, `Server Core` or `WindowsPE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_type: Option<String>,
    /// Such as `amd64`; `None` for a number that this version does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// `10.0.19045.2965`: major, minor, build, service pack build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Languages inside, such as `fr-FR`.
    pub languages: Vec<String>,
    /// The language that Setup speaks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_language: Option<String>,
    /// Unpacked size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl WimImage {
    /// The third number of the version: 19045 for Windows 10 22H2.
    #[must_use]
    pub fn build(&self) -> Option<u32> {
        self.version.as_deref()?.split('.').nth(2)?.parse().ok()
    }

    /// A server, with or without a desktop.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.installation_type.as_deref().is_some_and(|kind| kind.starts_with("Server"))
    }
}

/// `Professional ("Windows 10 Pro")`
impl fmt::Display for WimImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (\"{}\")", self.edition_id.as_deref().unwrap_or("no edition id"), self.name)
    }
}

/// Reads the image file in `source`, which is `length` bytes long.
///
/// # Errors
/// When it is cut off, is something else, or its XML cannot be read.
pub fn read<R: Read + Seek>(source: &mut R, length: u64) -> Result<Wim, WimError> {
    let mut header = [0; HEADER];
    read_at(source, length, 0, &mut header, "the header")?;
    if &header[..8] != MAGIC {
        return Err(WimError::NotWim(header[..8].to_vec()));
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let count = u32_at(44);
    if count > IMAGES_LIMIT {
        return Err(WimError::Damaged(format!("it claims {count} images")));
    }
    let size = u64_at(72) & 0x00ff_ffff_ffff_ffff;
    if size > XML_LIMIT {
        return Err(WimError::Damaged(format!("it claims {size} bytes of XML")));
    }
    let mut xml = vec![0; usize::try_from(size).map_err(|_| WimError::Damaged("XML size".into()))?];
    read_at(source, length, u64_at(80), &mut xml, "the XML")?;
    let images = parse_xml(&utf16(&xml)?)?;
    Ok(Wim { esd: u32_at(16) & FLAG_LZMS != 0, part: (u16_at(40), u16_at(42)), images })
}

fn read_at<R: Read + Seek>(
    source: &mut R,
    length: u64,
    offset: u64,
    into: &mut [u8],
    what: &'static str,
) -> Result<(), WimError> {
    let end = offset.checked_add(into.len() as u64).filter(|end| *end <= length);
    end.ok_or(WimError::Truncated { what })?;
    source.seek(SeekFrom::Start(offset))?;
    source.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => WimError::Truncated { what },
        _ => WimError::Io(error),
    })
}

fn utf16(bytes: &[u8]) -> Result<String, WimError> {
    let body = bytes.strip_prefix(&[0xff, 0xfe]).ok_or_else(|| WimError::Xml("no byte order mark".into()))?;
    let units: Vec<u16> = body.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    String::from_utf16(&units).map_err(|error| WimError::Xml(error.to_string()))
}

/// What is done with the text of an element, by its path below `IMAGE`.
type Field = (&'static str, fn(&mut WimImage, &str));

const FIELDS: &[Field] = &[
    ("NAME", |image, text| text.clone_into(&mut image.name)),
    ("TOTALBYTES", |image, text| image.bytes = text.parse().ok()),
    ("WINDOWS/ARCH", |image, text| image.arch = arch(text).map(str::to_owned)),
    ("WINDOWS/EDITIONID", |image, text| image.edition_id = Some(text.to_owned())),
    ("WINDOWS/INSTALLATIONTYPE", |image, text| image.installation_type = Some(text.to_owned())),
    ("WINDOWS/LANGUAGES/LANGUAGE", |image, text| image.languages.push(text.to_owned())),
    ("WINDOWS/LANGUAGES/DEFAULT", |image, text| image.default_language = Some(text.to_owned())),
    ("WINDOWS/VERSION/MAJOR", version_part),
    ("WINDOWS/VERSION/MINOR", version_part),
    ("WINDOWS/VERSION/BUILD", version_part),
    ("WINDOWS/VERSION/SPBUILD", version_part),
];

/// The parts come in this order; Windows never writes them otherwise.
fn version_part(image: &mut WimImage, text: &str) {
    let version = image.version.get_or_insert_default();
    if !version.is_empty() {
        version.push('.');
    }
    version.push_str(text);
}

/// `PROCESSOR_ARCHITECTURE_*` of winnt.h as Windows Setup writes them in answer files.
fn arch(number: &str) -> Option<&'static str> {
    match number {
        "0" => Some("x86"),
        "5" => Some("arm"),
        "6" => Some("ia64"),
        "9" => Some("amd64"),
        "12" => Some("arm64"),
        _ => None,
    }
}

fn parse_xml(text: &str) -> Result<Vec<WimImage>, WimError> {
    let mut reader = Reader::from_str(text);
    let mut images: Vec<WimImage> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut value = String::new();
    loop {
        match reader.read_event().map_err(|error| WimError::Xml(error.to_string()))? {
            Event::Start(tag) => {
                let name = tag.name().as_ref().to_owned();
                if path == ["WIM"] && name == "IMAGE" {
                    let index =
                        tag.try_get_attribute("INDEX").map_err(|error| WimError::Xml(error.to_string()))?;
                    let index = index.and_then(|index| index.value.parse().ok());
                    let index = index.ok_or_else(|| WimError::Xml("an IMAGE without INDEX".into()))?;
                    images.push(WimImage { index, ..WimImage::default() });
                }
                path.push(name);
                value.clear();
            }
            Event::Text(text) => value.push_str(&text.xml10_content()),
            Event::GeneralRef(entity) => {
                let raw = format!("&{};", entity.xml10_content());
                let plain =
                    quick_xml::escape::unescape(&raw).map_err(|error| WimError::Xml(error.to_string()))?;
                value.push_str(&plain);
            }
            Event::End(_) => {
                if path.len() > 2 && path[1] == "IMAGE" {
                    let below = path[2..].join("/");
                    let field = FIELDS.iter().find(|(name, _)| *name == below);
                    if let (Some((_, set)), Some(image)) = (field, images.last_mut()) {
                        set(image, value.trim());
                    }
                }
                path.pop();
                value.clear();
            }
            Event::Eof => break,
            _ => {}
        }
    }
    Ok(images)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Cursor;

    const XML: &str = "<WIM><TOTALBYTES>1</TOTALBYTES><IMAGE INDEX=\"6\"><DIRCOUNT>2</DIRCOUNT><TOTALBYTES>15129349581</TOTALBYTES>\
        <WINDOWS><ARCH>9</ARCH><PRODUCTNAME>Microsoft® Windows® Operating System</PRODUCTNAME><EDITIONID>Professional</EDITIONID>\
        <INSTALLATIONTYPE>Client</INSTALLATIONTYPE><LANGUAGES><LANGUAGE>fr-FR</LANGUAGE><DEFAULT>fr-FR</DEFAULT></LANGUAGES>\
        <VERSION><MAJOR>10</MAJOR><MINOR>0</MINOR><BUILD>19041</BUILD><SPBUILD>2965</SPBUILD></VERSION></WINDOWS>\
        <NAME>Windows 10 &amp; Professionnel</NAME></IMAGE></WIM>";

    /// A file with just a header and this XML.
    pub(crate) fn file(xml: &str) -> Vec<u8> {
        let mut body = vec![0xff, 0xfe];
        body.extend(xml.encode_utf16().flat_map(u16::to_le_bytes));
        let mut bytes = vec![0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[40..44].copy_from_slice(&[1, 0, 1, 0]);
        bytes[44] = 1;
        bytes[72..80].copy_from_slice(&(body.len() as u64 | 0x0200_0000_0000_0000).to_le_bytes());
        bytes[80..88].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Wim, WimError> {
        read(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn an_image_is_read_with_its_edition_build_and_languages() {
        let wim = read_bytes(&file(XML)).expect("a good file");
        let image = &wim.images[0];
        assert_eq!((image.index, image.name.as_str()), (6, "Windows 10 & Professionnel"));
        assert_eq!(image.edition_id.as_deref(), Some("Professional"));
        assert_eq!(image.version.as_deref(), Some("10.0.19041.2965"));
        assert_eq!(image.build(), Some(19041));
        assert_eq!(image.languages, ["fr-FR"]);
        assert_eq!(image.arch.as_deref(), Some("amd64"));
        assert_eq!(image.bytes, Some(15_129_349_581));
        assert_eq!((wim.esd, wim.part), (false, (1, 1)));
    }

    #[test]
    fn every_truncation_is_an_error_that_names_what_is_missing() {
        let whole = file(XML);
        for length in 0..whole.len() {
            let error = read_bytes(&whole[..length]).expect_err("a part is not a whole");
            assert!(matches!(error, WimError::Truncated { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        let error = read_bytes(&[b'<'; 300]).expect_err("an HTML page is no WIM");
        assert!(matches!(error, WimError::NotWim(_)), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn damage_is_never_a_panic(at in 0usize..300, byte: u8, xml in ".{0,200}") {
            let mut bytes = file(XML);
            bytes[at] = byte;
            let _ = read_bytes(&bytes);
            let _ = read_bytes(&file(&xml));
        }
    }
}
