//! The rules of `checks.lifecycle`: what a working card must survive, and which of it this guest can do.

use std::collections::BTreeMap;

use super::{At, Rules};
use crate::diagnostic::Kind;
use crate::plan::{DriverStep, Lifecycle};
use crate::recipe::tree::{Node, Value};
use crate::recipe::{DriverAsk, DriverInstall, Input, OtherDriverAsk, Spot};
use crate::schema::DRIVER_STEP;

/// What `text` asks for; it has been checked to be one of the words.
fn step(text: &str) -> Lifecycle {
    match text {
        "reboot" => Lifecycle::Reboot,
        "replug" => Lifecycle::Replug,
        "driver-reload" => Lifecycle::Driver(DriverStep::Reload),
        "driver-reinstall" => Lifecycle::Driver(DriverStep::Reinstall),
        "driver-rollback" => Lifecycle::Driver(DriverStep::Rollback),
        text => match text.strip_prefix(DRIVER_STEP) {
            Some(name) => Lifecycle::Driver(DriverStep::Package(name.to_owned())),
            None => Lifecycle::ColdStart,
        },
    }
}

/// All steps, each with its place.
fn steps(root: &At<'_>) -> Vec<(Lifecycle, Spot)> {
    let Some(at) = root.child("checks") else { return Vec::new() };
    let Some(Node { value: Value::List(items), .. }) = at.node("lifecycle") else { return Vec::new() };
    let one = |(n, node): (usize, &Node)| match &node.value {
        Value::Text(text) => {
            let spot = Spot { key: format!("checks.lifecycle.{n}"), place: node.origin.place() };
            Some((step(text), spot))
        }
        _ => None,
    };
    items.iter().enumerate().filter_map(one).collect()
}

impl Rules<'_> {
    pub(super) fn lifecycle(&mut self, root: &At<'_>) -> Vec<Lifecycle> {
        steps(root).into_iter().map(|(step, _)| step).collect()
    }

    /// The packages that take the driver's place in between, each once; and what of all steps cannot be.
    pub(super) fn other_drivers(
        &mut self,
        root: &At<'_>,
        ask: &DriverAsk,
        inputs: &mut BTreeMap<String, Input>,
    ) -> Vec<OtherDriverAsk> {
        let steps = steps(root);
        self.lifecycle_conflicts(root, ask, &steps);
        let mut others: Vec<OtherDriverAsk> = Vec::new();
        for (step, spot) in steps {
            let Lifecycle::Driver(DriverStep::Package(name)) = step else { continue };
            if others.iter().any(|other| other.name == name) {
                continue;
            }
            if let Some(name) = self.driver_package(&name, &spot, inputs) {
                others.push(OtherDriverAsk { name, spot });
            }
        }
        others
    }

    fn lifecycle_conflicts(&mut self, root: &At<'_>, ask: &DriverAsk, steps: &[(Lifecycle, Spot)]) {
        let has_card = !root.items("card").is_empty();
        let lean = root.child("guest").is_some_and(|guest| guest.text("init") == "lean");
        let with_card = ask.install == DriverInstall::WithCard;
        // Windows keeps one driver for the way back.
        let mut before = false;
        for (step, spot) in steps {
            let Lifecycle::Driver(step) = step else { continue };
            let wrong = match step {
                _ if !has_card => {
                    Some(("there is no card whose driver could change", "add a [[card]], or leave this out"))
                }
                DriverStep::Rollback if !self.windows => {
                    Some(("only Windows keeps the driver before", "name the package: driver:NAME"))
                }
                DriverStep::Rollback if with_card => Some((
                    "NVIDIA's installer is told to leave nothing of the driver before",
                    "name the package: driver:NAME, or set driver.install = \"staged\"",
                )),
                DriverStep::Rollback if !before => {
                    Some(("there is no driver before to go back to", "put driver:NAME before it"))
                }
                DriverStep::Package(_) | DriverStep::Reinstall if lean && !self.windows => Some((
                    "a lean guest has no package manager to build a driver's module with",
                    "set guest.init = \"systemd\", or ask for driver-reload",
                )),
                DriverStep::Reinstall
                    if !self.windows && ask.package.is_none() && ask.packages.is_empty() =>
                {
                    Some(("the driver is the kernel's own", "ask for driver-reload, or name driver.package"))
                }
                _ => None,
            };
            before = match step {
                DriverStep::Package(_) => true,
                DriverStep::Reload => before,
                DriverStep::Reinstall | DriverStep::Rollback => false,
            };
            if let Some((what, fix)) = wrong {
                self.push(spot.problem(Kind::Conflict, what).fix(fix));
            }
        }
    }
}
