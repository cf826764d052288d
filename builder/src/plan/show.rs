//! A plan on one screen.

use std::fmt;

use super::{Boot, Init};
use super::{CardWish, ChecksPlan, DebianBase, Firmware, LayerWhat, NetworkPlan, Plan, StepPlan};
use crate::key::Key;
use crate::recipe::units::show_size;
use crate::windows::WindowsBase;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, &|_| None)
    }
}

impl Plan {
    /// The same text as `Display`, with a word for each layer about whether it is there.
    #[must_use]
    pub fn show_with(&self, exists: &dyn Fn(&Key) -> bool) -> String {
        struct With<'a>(&'a Plan, &'a dyn Fn(&Key) -> bool);
        impl fmt::Display for With<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.show(f, &|key| Some(self.1(key)))
            }
        }
        With(self, exists).to_string()
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, exists: &dyn Fn(&Key) -> Option<bool>) -> fmt::Result {
        let init = if self.guest.init == Init::Lean { ", lean" } else { "" };
        writeln!(f, "  {}   {}{init}   from {}", self.name, self.guest.os, self.recipe_file.display())?;
        let top = self.layers.iter().rposition(|layer| exists(&layer.key) == Some(true));
        for (n, layer) in self.layers.iter().enumerate() {
            let label = if n == 0 { "layers" } else { "" };
            let state = match exists(&layer.key) {
                None => "",
                Some(_) if top.is_some_and(|top| n <= top) => "   there",
                Some(_) => "   to build",
            };
            let what = what(&layer.what);
            writeln!(f, "  {label:<8} {}  {:<18} {what}{state}", layer.key.short(), cut(&layer.name, 18))?;
        }
        writeln!(f, "  machine  {}", self.machine_line())?;
        for (n, card) in self.cards.iter().enumerate() {
            writeln!(f, "  {:<8} {}", if n == 0 { "card" } else { "" }, card_line(card))?;
        }
        writeln!(f, "  checks   {}", checks_line(&self.checks))?;
        for note in &self.notes {
            writeln!(f, "  note     {note}")?;
        }
        Ok(())
    }

    fn machine_line(&self) -> String {
        let machine = &self.machine;
        let firmware = match machine.firmware {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
            Firmware::UefiSecure => "UEFI with Secure Boot",
        };
        let boot = if machine.boot == Boot::Direct { "kernel given to QEMU" } else { "boots from its disk" };
        let network = match &self.network {
            NetworkPlan::None => "no network".to_owned(),
            NetworkPlan::User => "user network".to_owned(),
            NetworkPlan::Bridge(bridge) => format!("bridge {bridge}"),
            NetworkPlan::Macvtap(parent) => format!("macvtap on {parent}"),
        };
        let cpus = if machine.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", machine.cpus) };
        let memory = show_size(machine.memory_mib << 20);
        let pages = if machine.hugepages { " in huge pages" } else { "" };
        format!(
            "{cpus}, {memory} memory{pages}, {} disk, {firmware}, {boot}, {network}",
            show_size(machine.disk_bytes)
        )
    }
}

/// At most `width` characters.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

fn what(what: &LayerWhat) -> String {
    let text = match what {
        LayerWhat::Debian(base) => debian(base),
        LayerWhat::Windows(base) => windows(base),
        LayerWhat::WindowsSetup(setup) => setup.title.clone(),
        LayerWhat::Step(StepPlan::Run { argv, .. }) => format!("run {}", argv.join(" ")),
        LayerWhat::Step(StepPlan::Copy { files }) => match &files[..] {
            [one] => format!("copy to {}", one.to),
            _ => format!("copy {} files", files.len()),
        },
        LayerWhat::Step(StepPlan::Install { packages, .. }) => format!("install {}", packages.join(" ")),
        LayerWhat::Step(StepPlan::Driver(driver)) => match &driver.version {
            Some(version) => format!("NVIDIA's driver {version}"),
            None => format!("install {}", driver.packages.join(" ")),
        },
        LayerWhat::Step(StepPlan::Reboot { .. }) => "reboot".to_owned(),
        LayerWhat::Step(StepPlan::WaitFor { what, .. }) => format!("wait for {what:?}"),
    };
    cut(&text.replace(char::is_control, " "), 60)
}

fn windows(base: &WindowsBase) -> String {
    let drivers = base.virtio.as_ref().map_or(0, |virtio| virtio.in_setup.len() + virtio.later.len());
    format!("{}, {drivers} drivers, {} set-up actions", base.title, base.setup.actions.len())
}

fn debian(base: &DebianBase) -> String {
    let packages = base.packages.len() + base.backports.len();
    format!("Debian {} {}, {packages} packages, {} files", base.suite, base.variant, base.files.len())
}

fn card_line(card: &CardWish) -> String {
    let request = &card.request;
    let mut parts = Vec::new();
    parts.extend(request.model.as_ref().map(|model| format!("model '{model}'")));
    parts.extend(request.id.clone());
    parts.extend(request.address.as_ref().map(|address| format!("at {address}")));
    if parts.is_empty() {
        parts.push(if request.count == 1 { "any card".to_owned() } else { "any cards".to_owned() });
    }
    let mut line = parts.join(", ");
    if request.count > 1 {
        line = format!("{} × {line}", request.count);
    }
    line.push_str(&card.functions.show());
    if let Some(id) = &card.present_as {
        line.push_str(&format!(", shown to the guest as {id}"));
    }
    if let Some(here) = &card.here {
        line.push_str(&format!("   → {here}"));
    }
    line
}

fn checks_line(checks: &ChecksPlan) -> String {
    let named = [
        ("agent", true),
        ("card", checks.card),
        ("driver", checks.driver),
        ("connector", checks.connector),
        ("picture", checks.picture),
        ("work", checks.work.is_some()),
        ("quiet", checks.quiet),
    ];
    let named = named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name);
    let all = named.chain(checks.own.iter().map(|check| check.name.as_str()));
    let mut words: Vec<String> = all.map(str::to_owned).collect();
    words.extend(checks.lifecycle.iter().map(|one| format!("again after {one}")));
    words.join(", ")
}
