//! What the lock keeps of a driver package, so that planning opens no package: version, date, signer and every listed device.

use std::path::Path;

use no43_host::device_name;
use serde::{Deserialize, Serialize};

use super::display::{Device, Models};
use super::{DisplayInf, Form, Package, System, Version};

/// A package in a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DriverFacts {
    /// For which system.
    pub system: System,
    /// NVIDIA's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// As the newest display INF writes it: month/day/year.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub date: String,
    /// Of the Store kind.
    #[serde(default)]
    pub dch: bool,
    /// For which computers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// Who signed its catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// How many files it holds.
    #[serde(default)]
    pub files: usize,
    /// Their size, unpacked.
    #[serde(default)]
    pub bytes: u64,
    /// Where it contradicts itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contradictions: Vec<String>,
    /// Its devices, by INF and section.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelFacts>,
}

/// The devices of one section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelFacts {
    /// The INF's path in the package.
    pub inf: String,
    /// The section's name, with its decoration.
    pub section: String,
    /// Ids with a space between them; one with a board as `10de:2520/1462:8a13`.
    pub devices: String,
}

/// Who signed the catalogue of the display driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signer {
    /// Microsoft, for drivers: any Windows takes it.
    Microsoft,
    /// Somebody else: a test or beta package.
    Other,
    /// There is no catalogue beside the INF.
    Nobody,
}

impl DriverFacts {
    /// The facts of a package.
    #[must_use]
    pub fn of(package: &Package) -> Self {
        let models = package.infs.iter().flat_map(|inf| inf.models.iter().map(move |models| (inf, models)));
        let newest = package.infs.iter().max_by_key(|inf| inf.version);
        Self {
            system: package.system,
            version: package.version,
            date: newest.map(|inf| inf.date.clone()).unwrap_or_default(),
            dch: package.dch,
            form: package.form,
            signer: package.signer,
            files: package.files,
            bytes: package.bytes,
            contradictions: package.contradictions.clone(),
            models: models
                .map(|(inf, models)| ModelFacts {
                    inf: inf.path.clone(),
                    section: models.section.clone(),
                    devices: models.devices.iter().map(id).collect::<Vec<_>>().join(" "),
                })
                .collect(),
        }
    }

    /// The package again, as far as these facts go: devices have the names of the PCI id list.
    #[must_use]
    pub fn package(&self, path: &Path) -> Package {
        let mut infs: Vec<DisplayInf> = Vec::new();
        for facts in &self.models {
            let Some(models) = models(facts) else { continue };
            match infs.iter_mut().find(|inf| inf.path == facts.inf) {
                Some(inf) => inf.models.push(models),
                None => infs.push(DisplayInf {
                    date: self.date.clone(),
                    version: self.version,
                    dch: self.dch,
                    models: vec![models],
                    ..DisplayInf::empty(&facts.inf)
                }),
            }
        }
        Package {
            path: path.to_owned(),
            system: self.system,
            debian: None, // a recipe names such packages, never their files
            version: self.version,
            dch: self.dch,
            form: self.form,
            signer: self.signer,
            files: self.files,
            bytes: self.bytes,
            infs,
            contradictions: self.contradictions.clone(),
        }
    }
}

fn id(device: &Device) -> String {
    device.subsystem.map_or_else(|| device.id.to_string(), |board| format!("{}/{board}", device.id))
}

fn models(facts: &ModelFacts) -> Option<Models> {
    let device = |text: &str| {
        let (id, board) = text.split_once('/').map_or((text, None), |(id, board)| (id, Some(board)));
        let id: no43_host::PciId = id.parse().ok()?;
        let subsystem = match board {
            Some(board) => {
                let board: no43_host::PciId = board.parse().ok()?;
                Some(super::Subsystem { vendor: board.vendor, device: board.device })
            }
            None => None,
        };
        let name = device_name(id).unwrap_or_default();
        Some(Device { id, subsystem, name, install: String::new() })
    };
    let decoration = facts.section.split_once('.').map_or("", |(_, decoration)| decoration);
    Some(Models {
        section: facts.section.clone(),
        target: super::Target::parse(decoration)?,
        devices: facts.devices.split(' ').filter_map(device).collect(),
    })
}

/// What Microsoft's own signature for drivers has in the name of its certificate.
const MICROSOFT: &[u8] = b"Microsoft Windows Hardware Compatibility";

/// Who signed a catalogue. Only the certificate's name is looked for: the signature itself is Windows' to check.
pub(super) fn signer_of(catalogue: &[u8]) -> Signer {
    let named = catalogue.windows(MICROSOFT.len()).any(|part| part == MICROSOFT);
    if named { Signer::Microsoft } else { Signer::Other }
}
