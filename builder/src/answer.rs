//! Answer files: what Windows Setup is told, made from typed settings; and a linter for anybody's answer file.
//!
//! A tree of elements is made from [`Settings`] and written once; no text is ever searched and replaced. The password
//! inside is a random one of this build, the key is a public one: a recipe's own secrets are given to an instance at its first
//! start and are in no answer file, no set-up disk and no layer key.

mod choice;
mod conflicts;
mod finding;
mod lint;
mod password;
mod read;
mod render;
mod settings;
pub mod tables;
#[cfg(test)]
mod tests;
mod xml;

pub use choice::{BuildOnly, settings_for};
pub use conflicts::conflicts;
pub(crate) use conflicts::own_file;
pub use finding::{Finding, Severity};
pub use lint::{has_errors, lint, lint_bytes, read_file};
pub use render::{ERROR_HANDLER, FILE_NAME, FOLDER, error_handler};
pub use settings::{Arch, DriverUpdates, Image, Settings, SystemUpdates, Updates};
