//! What the end-to-end suites share: cases with named needs, a scene of their own each, runs with limits.
//!
//! Surprises: a case talks to `no43` only as a program (a suite must not notice a refactoring); everything that a case
//! starts, however far down and whatever it is re-parented to, carries a marker in its environment, so that a case
//! that leaves a process behind fails, and nothing else on the machine is ever signalled.

pub mod capability;
pub mod expect;
pub mod lab_host;
pub mod logind;
pub mod programs;
pub mod run;
pub mod scene;
pub mod stand_in;
pub mod suite;
pub mod wine;

pub use lab_host::LabHost;
pub use run::{Run, Seen};
pub use scene::Scene;
pub use suite::Case;
pub use wine::{Screen, Wine};
