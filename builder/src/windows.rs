//! A Windows base layer: from the untouched medium to a sealed image, by an unattended installation.
//!
//! Planning chooses edition, answer file, drivers and set-up plan (`plan`); building writes the set-up disk, installs
//! ([`crate::install`]), and seals disk, UEFI variables, TPM state and identity as one artifact (`seal`).

mod change;
mod extra;
mod make;
pub(crate) mod plan;
mod seal;
mod setup_run;
mod steps;

pub use change::{CardThere, DriverOnDisk, driver_folder, write_driver_disk};
pub(crate) use extra::layers;
pub use extra::{DriverIn, WindowsSetup};
pub(crate) use make::build;
pub use plan::{AnswerPlan, FileFound, VirtioFound, WindowsBase, WindowsFacts};
pub use seal::{Private, Sealed, Who};
pub(crate) use setup_run::build as set_up;
pub(crate) use steps::step_layer;
