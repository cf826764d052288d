//! The lab's end of the port on which an inner no43 asks for what only the outside can see or do.
//!
//! The lab host is not trusted: requests are bounded, a card is only what the profile put there, and a file name is a bare
//! name inside the run's own pictures.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use no43_host::PciAddress;
use no43_host::lab_port::{LineReader, Reply, Request, VERSION, encode, is_bare_name};
use no43_machine::{Machine, hotplug, is_placeholder};
use serde_json::{Value, json};

use crate::outer::LAB_PORT;

/// Pictures of one run, so that a lab host gone mad does not fill the disk: 3 MB each at most.
const PICTURES_MAX: u32 = 2000;
/// How long a card may take to leave: the inner QEMU must let go of it first.
const CUT_LIMIT: Duration = Duration::from_secs(30);
/// How often the server looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(100);

/// A PCI function of the lab host that has a name here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// QEMU's id of the device.
    id: String,
    /// QEMU's id of the port on the root bus above it; empty for devices of the root bus.
    port: String,
}

/// Serves one run.
pub(crate) struct Server<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) profile: &'a str,
    /// Where pictures go, inside the share.
    pub(crate) pictures: &'a Path,
}

impl Server<'_> {
    /// Answers until `stop` is set or QEMU is gone.
    pub(crate) fn serve(&self, stop: &AtomicBool) {
        let Ok(mut port) = UnixStream::connect(self.machine.dirs().port_socket(LAB_PORT)) else { return };
        if port.set_read_timeout(Some(TICK)).is_err() || port.set_write_timeout(Some(TICK * 50)).is_err() {
            return;
        }
        let (mut reader, mut chunk, mut taken) = (LineReader::default(), [0; 4096], 0);
        while !stop.load(Ordering::Relaxed) {
            let count = match port.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if is_timeout(&error) => continue,
                Err(_) => return,
            };
            for message in reader.feed::<Request>(&chunk[..count]) {
                let reply =
                    self.answer(&message.body, &mut taken).unwrap_or_else(|why| Reply::Failed { why });
                if port.write_all(encode(message.id, &reply).as_bytes()).is_err() {
                    return;
                }
            }
        }
    }

    fn answer(&self, request: &Request, taken: &mut u32) -> Result<Reply, String> {
        match request {
            Request::Hello { .. } => {
                let cards = self.devices()?.into_iter().filter(|(_, known)| known.id.starts_with("card-"));
                let cards = cards.map(|(address, _)| address).collect();
                Ok(Reply::Hello { version: VERSION, profile: self.profile.to_owned(), cards })
            }
            Request::Capture { address, file } => {
                *taken += 1;
                if *taken > PICTURES_MAX {
                    return Err(format!("this run has taken {PICTURES_MAX} pictures: that is enough"));
                }
                self.capture(*address, file)
            }
            Request::CutCard { address } => {
                let card = self.card(*address)?;
                hotplug::unplug(self.machine, &card.id, CUT_LIMIT).map_err(|error| error.to_string())?;
                Ok(Reply::Done)
            }
            Request::InjectAer { address, fatal } => {
                let card = self.card(*address)?;
                // The card itself is a conventional device, which has no error reporting. Data Link Protocol Error is
                // fatal, Receiver Error is corrected by the link itself.
                let line = if *fatal { format!("{} DLP", card.port) } else { format!("{} RCVR", card.port) };
                self.inject(&line)
            }
        }
    }

    fn capture(&self, address: PciAddress, file: &str) -> Result<Reply, String> {
        if !is_bare_name(file) {
            return Err("the file's name is not a bare name".to_owned());
        }
        let card = self.card(address)?;
        let picture = self.machine.screendump(Some(&card.id)).map_err(|error| error.to_string())?;
        write_png(&self.pictures.join(file), &picture)
            .map_err(|error| format!("failed to write the picture {file}: {error}"))?;
        let (width, height) = picture.dimensions();
        Ok(Reply::Captured { file: file.to_owned(), width, height, placeholder: is_placeholder(&picture) })
    }

    fn inject(&self, arguments: &str) -> Result<Reply, String> {
        let command = json!({ "command-line": format!("pcie_aer_inject_error {arguments}") });
        let said =
            self.machine.qmp().raw("human-monitor-command", command).map_err(|error| error.to_string())?;
        let said = said.as_str().unwrap_or_default().trim();
        if said.starts_with("OK") { Ok(Reply::Done) } else { Err(format!("QEMU says: {said}")) }
    }

    /// The card that has this address in the lab host; asked for any of its functions, it is known by its video function.
    fn card(&self, address: PciAddress) -> Result<Known, String> {
        let devices = self.devices()?;
        let video = PciAddress { function: 0, ..address };
        let card = devices.get(&video).filter(|known| known.id.starts_with("card-"));
        card.cloned().ok_or_else(|| {
            let cards = devices.iter().filter(|(_, known)| known.id.starts_with("card-"));
            let there: Vec<String> = cards.map(|(address, _)| address.to_string()).collect();
            format!("{address} is no card of this lab; there are: {}", there.join(", "))
        })
    }

    fn devices(&self) -> Result<BTreeMap<PciAddress, Known>, String> {
        let answer = self.machine.qmp().raw("query-pci", Value::Null).map_err(|error| error.to_string())?;
        Ok(named(&answer))
    }
}

/// Every device with an id in `query-pci`'s answer. The bus numbers are those that the lab host gave.
fn named(answer: &Value) -> BTreeMap<PciAddress, Known> {
    let mut found = BTreeMap::new();
    for bus in answer.as_array().into_iter().flatten() {
        collect(&bus["devices"], "", &mut found);
    }
    found
}

fn collect(devices: &Value, port: &str, found: &mut BTreeMap<PciAddress, Known>) {
    for device in devices.as_array().into_iter().flatten() {
        let number = |name: &str| device[name].as_u64().and_then(|number| u8::try_from(number).ok());
        let id = device["qdev_id"].as_str().unwrap_or_default();
        if let (Some(bus), Some(slot), Some(function)) = (number("bus"), number("slot"), number("function"))
            && !id.is_empty()
        {
            let address = PciAddress { domain: 0, bus, device: slot, function };
            found.insert(address, Known { id: id.to_owned(), port: port.to_owned() });
        }
        let below = if port.is_empty() { id } else { port };
        collect(&device["pci_bridge"]["devices"], below, found);
    }
}

/// Written aside and renamed, so that nobody sees half a picture; readable for the lab host's user.
fn write_png(path: &Path, picture: &RgbImage) -> io::Result<()> {
    let aside = PathBuf::from(format!("{}.part", path.display()));
    let _ = fs::remove_file(&aside);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&aside)?;
    let mut out = BufWriter::new(file);
    let (width, height) = picture.dimensions();
    let encoder = PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Sub);
    encoder
        .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)?;
    out.flush()?;
    out.get_ref().set_permissions(fs::Permissions::from_mode(0o644))?;
    fs::rename(aside, path)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device(bus: u8, slot: u8, function: u8, id: &str) -> Value {
        json!({ "bus": bus, "slot": slot, "function": function, "qdev_id": id })
    }

    #[test]
    fn a_card_is_found_behind_its_port_also_behind_a_switch() {
        let mut port = device(0, 16, 0, "port-left");
        port["pci_bridge"] =
            json!({ "devices": [device(1, 0, 0, "card-left"), device(1, 0, 1, "audio-left")] });
        let mut down = device(3, 1, 0, "down-x");
        down["pci_bridge"] = json!({ "devices": [device(4, 0, 0, "card-x")] });
        let mut up = device(2, 0, 0, "switch-sw");
        up["pci_bridge"] = json!({ "devices": [down] });
        let mut switch = device(0, 17, 0, "port-sw");
        switch["pci_bridge"] = json!({ "devices": [up] });
        let answer = json!([{ "bus": 0, "devices": [device(0, 0, 0, ""), port, switch] }]);
        let cards: Vec<String> = named(&answer)
            .into_iter()
            .filter(|(_, known)| known.id.starts_with("card-"))
            .map(|(address, known)| format!("{address} {} {}", known.id, known.port))
            .collect();
        assert_eq!(cards, ["0000:01:00.0 card-left port-left", "0000:04:00.0 card-x port-sw"]);
    }

    #[test]
    fn a_picture_is_written_whole_and_over_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        for shade in [1, 2] {
            let picture = RgbImage::from_pixel(4, 3, image::Rgb([shade; 3]));
            write_png(&path, &picture).unwrap();
            assert_eq!(image::open(&path).unwrap().into_rgb8(), picture);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z-]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec(
                    (
                        proptest::sample::select(vec![
                            "bus",
                            "slot",
                            "function",
                            "qdev_id",
                            "devices",
                            "pci_bridge"
                        ]),
                        inner
                    ),
                    0..6
                )
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_answer_of_qemu_makes_it_panic(answer in any_json()) {
            named(&answer);
        }

        #[test]
        fn no_bytes_of_the_lab_host_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            LineReader::default().feed::<Request>(&bytes);
        }
    }
}
