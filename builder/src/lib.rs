//! Recipe, lock, plan, layers and the store: everything between the file a person writes and an image on disk.
//!
//! `Recipe → Lock → Plan → Image`; each arrow is one function: planning is pure, only building touches disks.

pub mod diagnostic;
pub mod key;
pub mod plan;
pub mod recipe;
pub mod schema;
