//! The lab's own devices as QEMU arguments: ports, cards and the host's display. Pure.
//!
//! A card is two conventional PCI devices in one slot: QEMU has no PCI Express graphics card, so the host inside sees no
//! link speed or width. Error injection therefore goes to the port above.

use no43_machine::spec::{Display, MachineSpec, slots};

use crate::profile::{Audio, Card, HostDisplay, Port, PortKind, Profile, Video};

/// The QEMU id of a card's video function.
pub(crate) fn video_id(card: &Card) -> String {
    format!("card-{}", card.name)
}

/// The QEMU id of a card's audio function.
pub(crate) fn audio_id(card: &Card) -> String {
    format!("audio-{}", card.name)
}

/// Puts the profile's hardware into a machine description.
pub(crate) fn install(profile: &Profile, spec: &mut MachineSpec) {
    spec.display = match profile.host.display {
        HostDisplay::Vga => Display::Vga,
        HostDisplay::None => Display::None,
    };
    spec.virtual_iommu = true;
    spec.smp = no43_machine::spec::Smp::cpus(profile.host.cpus);
    spec.memory_mib = profile.host.memory_mib;
    spec.extra.extend(arguments(profile));
}

/// The arguments for ports and cards, ports first: SeaBIOS counts buses in the order of places on the root bus.
fn arguments(profile: &Profile) -> Vec<String> {
    let mut out = Arguments::default();
    if profile.cards.iter().any(|card| card.audio != Audio::None) {
        out.pair("-audiodev", "none,id=silence".to_owned());
    }
    for (index, port) in profile.ports.iter().enumerate() {
        out.port(index, port);
    }
    for (index, port) in profile.ports.iter().enumerate() {
        let here = profile.cards.iter().filter(|card| card.port == index);
        for (place, card) in here.enumerate() {
            out.card(port, place, card);
        }
    }
    out.0
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn pair(&mut self, flag: &str, value: String) {
        self.0.extend([flag.to_owned(), value]);
    }

    fn device(&mut self, value: String) {
        self.pair("-device", value);
    }

    fn port(&mut self, index: usize, port: &Port) {
        let Port { name, kind, acs, place: (device, function), shares_device } = port;
        let (slot, chassis) = (slots::FIRST_CARD + device, index + 1);
        let several = if *shares_device && *function == 0 { ",multifunction=on" } else { "" };
        let acs = if *acs { "" } else { ",disable-acs=on" };
        self.device(format!(
            "pcie-root-port,id=port-{name},bus=pcie.0,addr={slot:#x}.{function},chassis={chassis}{several}{acs}"
        ));
        match kind {
            PortKind::Root => {}
            PortKind::Switch => self.device(format!("x3130-upstream,id=switch-{name},bus=port-{name}")),
            PortKind::Bridge => self.device(format!("pcie-pci-bridge,id=bridge-{name},bus=port-{name}")),
        }
    }

    /// Number `place` of the cards on this port.
    fn card(&mut self, port: &Port, place: usize, card: &Card) {
        let (name, of) = (&card.name, &port.name);
        let (bus, device) = match port.kind {
            PortKind::Root => (format!("port-{of}"), 0),
            PortKind::Switch => {
                let chassis = 31 + usize::from(port.place.0) * 8 + usize::from(port.place.1);
                let (down, slot) = (format!("down-{name}"), place + 1);
                self.device(format!(
                    "xio3130-downstream,id={down},bus=switch-{of},addr={place:#x}.0,chassis={chassis},slot={slot}"
                ));
                (down, 0)
            }
            // Device 0 of a conventional bridge is its hot-plug controller.
            PortKind::Bridge => (format!("bridge-{of}"), place + 1),
        };
        let video = match card.video {
            Video::SecondaryVga => "secondary-vga",
            Video::BochsDisplay => "bochs-display",
        };
        let several = if card.audio == Audio::None { "" } else { ",multifunction=on" };
        let id = video_id(card);
        self.device(format!("{video},id={id},bus={bus},addr={device:#x}.0{several}"));
        let audio = match card.audio {
            Audio::IntelHda => "intel-hda",
            Audio::Ich9IntelHda => "ich9-intel-hda",
            Audio::None => return,
        };
        let id = audio_id(card);
        self.device(format!("{audio},id={id},bus={bus},addr={device:#x}.1"));
        // Without a codec the driver logs "no codecs found".
        self.device(format!("hda-duplex,bus={id}.0,audiodev=silence"));
    }
}
