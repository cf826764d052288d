//! What this Linux lends to virtual machines: PCI cards, IOMMU groups, VFIO bindings, KVM; and how it gets them back.
//!
//! Looking (`inventory`, `card`, `holders`, `doctor`) changes nothing. Changing goes through a [`Lease`], is written into
//! the journal first ([`state`]), and is undone by [`recovery`] after a crash. The few writes that need root are in
//! `binding`, reached directly or by [`privilege`]'s verbs. sysfs, proc and dev are parameters ([`Roots`]).

mod address;
mod binding;
mod clock;
mod extras;
mod health;
mod names;
mod process;
mod raw;
mod reset;
mod roots;
mod size;
mod verb;

pub mod card;
pub mod doctor;
pub mod groups;
pub mod helper;
pub mod holders;
pub mod input;
pub mod inventory;
pub mod kvm;
pub mod lab_port;
pub mod lease;
pub mod memlock;
pub mod net;
pub mod privilege;
pub mod recovery;
pub mod setup;
pub mod state;
pub mod table;
pub mod usb;

pub use address::{ParsePciError, PciAddress, PciId};
pub use binding::{BindError, FunctionBack, GivenBack, Limits, VfioNode};
pub use card::{Card, CardState, Role};
pub use extras::{HUGE_PAGE_MIB, HugePages};
pub use holders::Holder;
pub use inventory::{Bar, Function, HostError, Inventory};
pub use kvm::KvmVerdict;
pub use lease::{CardRequest, Lease, LeaseError, lease};
pub use names::device as device_name;
pub use net::{NetDevice, NetError};
pub use privilege::Privilege;
pub use process::ProcessRef;
pub use reset::ResetTry;
pub use roots::Roots;
pub use size::size;
pub use state::{StateDir, StateError};
