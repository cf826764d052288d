//! Recipe, lock, plan, layers and the store: everything between the file a person writes and an image on disk.
//!
//! `Recipe → Lock → Plan → Image`; each arrow is one function: planning is pure, only building touches disks.

pub mod answer;
pub mod apps;
pub mod build;
mod debian;
pub mod diagnostic;
mod disk;
pub mod driver;
pub mod guest_program;
pub mod image;
mod initrd;
pub mod install;
pub mod key;
pub mod lock;
pub mod media;
pub mod plan;
pub mod recipe;
pub mod schema;
pub mod secret;
pub mod setup_disk;
pub mod step;
pub mod store;
pub mod virtio;
pub mod windows;
