//! What Setup reads from the medium itself: which images it installs, which languages it speaks.

use std::fs;
use std::path::Path;

use crate::xml::{self, Element};

/// The XML at the end of a WIM file; its place is in the header.
fn wim_xml(path: &Path) -> Result<Element, String> {
    let failed = |why: &str| format!("{} is no WIM: {why}", path.display());
    let bytes = fs::read(path).map_err(|error| failed(&error.to_string()))?;
    let number =
        |at: usize| bytes.get(at..at + 8).and_then(|part| Some(u64::from_le_bytes(part.try_into().ok()?)));
    // The size's upper byte holds flags.
    let (size, offset) = (
        number(72).ok_or_else(|| failed("too short"))? & 0x00ff_ffff_ffff_ffff,
        number(80).ok_or_else(|| failed("too short"))?,
    );
    if !bytes.starts_with(b"MSWIM\0\0\0") {
        return Err(failed("no magic number"));
    }
    let xml =
        bytes.get(offset as usize..(offset + size) as usize).ok_or_else(|| failed("its XML lies outside"))?;
    let units: Vec<u16> = xml.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    xml::parse(&String::from_utf16_lossy(&units)).map_err(|why| failed(&why))
}

/// Index and name of each image.
pub(crate) fn images(medium: &Path) -> Result<Vec<(String, String)>, String> {
    let root = wim_xml(&medium.join("sources/install.wim"))?;
    Ok(root
        .all("IMAGE")
        .map(|image| (image.attribute("INDEX").to_owned(), image.text_at("NAME").to_owned()))
        .collect())
}

/// The languages of Setup's own image.
pub(crate) fn languages(medium: &Path) -> Result<Vec<String>, String> {
    let root = wim_xml(&medium.join("sources/boot.wim"))?;
    let languages = root.all("IMAGE").filter_map(|image| image.at("WINDOWS/LANGUAGES"));
    Ok(languages
        .flat_map(|all| all.all("LANGUAGE"))
        .map(|language| language.text.trim().to_owned())
        .collect())
}
