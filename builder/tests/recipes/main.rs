//! Every shipped recipe becomes a plan; what changes a key and what does not; and what a person is told about mistakes.

mod common;
mod language;
mod layers;
mod mistakes;
mod shipped;
mod windows;
