//! What a recipe may say: one table of data, from which come the validation, the "did you mean" and the JSON Schema.
//!
//! schemars would derive a second description from the Rust types, which know nothing of keys that a later version
//! will support, nor of forms such as sizes; two descriptions drift apart, so the table in `schema/keys.rs` is the only
//! one.

mod json;
mod keys;
mod walk;

pub use json::json;
pub(crate) use keys::{DRIVER_STEP, RECIPE};
pub(crate) use walk::check;

/// One key of a table.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    /// A sentence for editors and docs.
    pub(crate) doc: &'static str,
}

/// Does this version know what to do with it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Built,
    /// Known, and refused unless it asks for nothing (`false`, `"none"`, an empty list).
    Later,
}

/// What a value looks like.
pub(crate) enum Kind {
    Bool,
    Int {
        min: i64,
        max: i64,
    },
    Text(Form),
    /// One of these words.
    OneOf(&'static [Word]),
    /// One of these words, or a name behind this one.
    WordOr(&'static [Word], &'static str),
    /// The first of these whose type fits.
    Either(&'static [Kind]),
    List(&'static Kind),
    Table(&'static [Field]),
    /// `[[name]]`
    Tables(&'static [Field]),
    /// A table whose keys are chosen by the person.
    Map(&'static [Field]),
}

/// One word of `Kind::OneOf`.
pub(crate) struct Word {
    pub(crate) name: &'static str,
    pub(crate) status: Status,
}

/// What a text looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Anything but nothing.
    Any,
    /// Part of a file name: letters, digits, `-`, `_`, `.`.
    Name,
    /// A login name.
    UserName,
    /// Debian package name.
    Package,
    /// A kernel module's name.
    Module,
    /// One word of a kernel command line.
    KernelOption,
    /// "128 GiB"
    Size,
    /// "10 min"
    Duration,
    /// `01:00` or `0000:01:00`
    CardAddress,
    /// `10de:2484`
    PciId,
    /// A path on this host; relative ones count from the file that says so.
    HostPath,
    /// An absolute path in the guest.
    GuestPath,
    /// Permission bits, "0644".
    Mode,
    /// `root:root`
    Owner,
    /// 64 hexadecimal digits.
    Sha256,
    /// `fr-FR`, `sr-Latn-RS`, or `C`.
    Language,
    /// `Europe/Paris`, or `Romance Standard Time`.
    TimeZone,
}
