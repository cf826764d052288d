//! What `nvidia-smi -q -x` says, in the same form as NVML's answers: a second source, by another program of the driver.
//!
//! Names of elements changed between versions of the document type (the "throttle" reasons became "event" reasons with
//! v12), and cards leave out what they lack; so each fact is looked for by its names, and what is not there is unknown.

use no43_guest::nvidia::{NvidiaCard, NvidiaFacts};
use no43_guest::protocol::GuestLink;

use crate::xml::{self, Element};

/// Most cards that are taken.
const CARDS: usize = 64;

/// Ends of the names of throttle reasons, and what NVML's bits are called here ([`no43_guest::nvidia::THROTTLE_REASONS`]).
const REASONS: &[(&str, &str)] = &[
    ("gpu_idle", "gpu-idle"),
    ("applications_clocks_setting", "applications-clocks"),
    ("sw_power_cap", "sw-power-cap"),
    ("hw_slowdown", "hw-slowdown"),
    ("sync_boost", "sync-boost"),
    ("sw_thermal_slowdown", "sw-thermal"),
    ("hw_thermal_slowdown", "hw-thermal"),
    ("hw_power_brake_slowdown", "hw-power-brake"),
    ("display_clocks_setting", "display-clocks"),
];

/// Words that stand where a fact is not there.
const NOTHING: &[&str] =
    &["", "n/a", "[n/a]", "not supported", "[not supported]", "unknown", "unknown error"];

/// The words of a card that does not answer any more.
const LOST: &str = "GPU is lost";

/// Reads what the program printed.
///
/// # Errors
/// If it is no such document; the error has its first words then, which often are a sentence that says why.
pub(crate) fn parse(text: &str) -> Result<NvidiaFacts, String> {
    let root = xml::parse(text).map_err(|reason| {
        let first: String = text.trim().lines().next().unwrap_or_default().chars().take(160).collect();
        format!("{reason}: {first:?}")
    })?;
    if root.name != "nvidia_smi_log" {
        return Err(format!("the document is a {:?}", root.name));
    }
    let gpus = root.children.iter().filter(|child| child.name == "gpu");
    Ok(NvidiaFacts {
        driver_version: said(&root, "driver_version"),
        nvml_version: None,
        cuda_version: said(&root, "cuda_version"),
        schema: schema(text),
        cards: gpus.take(CARDS).map(card).collect(),
        unknown: Vec::new(),
    })
}

/// `v12` from `SYSTEM "nvsmi_device_v12.dtd"`.
fn schema(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("nvsmi_device_")?;
    let (name, _) = rest.split_once(".dtd")?;
    (name.len() <= 8).then(|| name.to_owned())
}

/// The text at `path`, unless it says that there is nothing.
fn said(element: &Element, path: &str) -> Option<String> {
    let text = element.text_at(path)?;
    let nothing = NOTHING.contains(&text.to_ascii_lowercase().as_str()) || text == LOST;
    (!nothing).then(|| text.to_owned())
}

/// The number at the start of the text at `path`, as in `16x`, `41 C`.
fn number(element: &Element, path: &str) -> Option<u32> {
    leading(&said(element, path)?)?.0.try_into().ok()
}

/// A number and what follows it.
fn leading(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

/// `8192 MiB` in bytes; only units that are known.
fn bytes(element: &Element, path: &str) -> Option<u64> {
    let text = said(element, path)?;
    let (number, unit) = leading(&text)?;
    let shift = match unit {
        "MiB" | "MB" => 20, // old versions write MB and mean MiB
        "GiB" => 30,
        "KiB" => 10,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// `0000:01:00.0` from an id with a domain of four or eight digits.
fn address(id: &str) -> Option<String> {
    let (domain, rest) = id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let is_place = rest.len() == 7 && rest.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    is_place.then(|| format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

/// `10de:2484` from `248410DE`, with or without `0x`.
fn ids(element: &Element, path: &str) -> Option<String> {
    let text = said(element, path)?.to_ascii_lowercase();
    let text = text.strip_prefix("0x").unwrap_or(&text);
    let is_id = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| format!("{}:{}", &text[4..], &text[..4]))
}

fn card(gpu: &Element) -> NvidiaCard {
    let link = GuestLink {
        speed: number(gpu, "pci/pci_gpu_link_info/pcie_gen/current_link_gen"),
        width: number(gpu, "pci/pci_gpu_link_info/link_widths/current_link_width"),
        max_speed: number(gpu, "pci/pci_gpu_link_info/pcie_gen/max_link_gen"),
        max_width: number(gpu, "pci/pci_gpu_link_info/link_widths/max_link_width"),
    };
    let words = |path: &str| said(gpu, path).map(|text| text.to_ascii_lowercase().replace(' ', "-"));
    let gsp_firmware = said(gpu, "gsp_firmware_version");
    NvidiaCard {
        address: gpu.attribute("id").and_then(address),
        id: ids(gpu, "pci/pci_device_id"),
        subsystem: ids(gpu, "pci/pci_sub_system_id"),
        name: said(gpu, "product_name"),
        brand: said(gpu, "product_brand"),
        vbios: said(gpu, "vbios_version"),
        link: (link != GuestLink::default()).then_some(link),
        replays: number(gpu, "pci/replay_counter").map(u64::from),
        bar1_bytes: bytes(gpu, "bar1_memory_usage/total"),
        memory_bytes: bytes(gpu, "fb_memory_usage/total"),
        memory_used_bytes: bytes(gpu, "fb_memory_usage/used"),
        virtualization: words("gpu_virtualization_mode/virtualization_mode"),
        driver_model: words("driver_model/current_dm"),
        encoder_percent: None, // what it prints is the load, not the capacity
        encoder_sessions: number(gpu, "encoder_stats/session_count"),
        throttle_reasons: reasons(gpu),
        gsp: gsp_firmware.is_some().then_some(true),
        gsp_firmware,
        temperature_c: number(gpu, "temperature/gpu_temp"),
        lost: is_lost(gpu).then_some(true),
    }
}

fn reasons(gpu: &Element) -> Option<Vec<String>> {
    let list = gpu.at("clocks_event_reasons").or_else(|| gpu.at("clocks_throttle_reasons"))?;
    let told = |end: &str| {
        let one = list.children.iter().find(|child| {
            let name = child.name.as_str();
            ["clocks_event_reason_", "clocks_throttle_reason_"]
                .iter()
                .any(|s| name.strip_prefix(s) == Some(end))
        });
        one.map(|child| child.text == "Active")
    };
    let answers: Vec<(bool, &str)> =
        REASONS.iter().filter_map(|(end, name)| Some((told(end)?, *name))).collect();
    // Where none of the known ones is listed, nothing is known about them.
    let active = answers.iter().filter(|(active, _)| *active).map(|(_, name)| (*name).to_owned());
    (!answers.is_empty()).then(|| active.collect())
}

/// Whether the card is said to be lost anywhere.
fn is_lost(element: &Element) -> bool {
    element.text.contains(LOST) || element.children.iter().any(is_lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by hand after the public document types, not recorded: an old card, a new one, and one that is lost.
    const SAMPLES: &str = include_str!("gpu/data/nvidia-smi.xml");

    fn sample(version: &str) -> &'static str {
        let mut parts = SAMPLES.split("=====\n");
        parts.find(|part| part.contains(&format!("nvsmi_device_{version}.dtd"))).expect("a sample")
    }

    #[test]
    fn an_old_version() {
        let facts = parse(sample("v6")).unwrap();
        insta::assert_snapshot!(serde_json::to_string(&facts).unwrap(), @r#"{"driver_version":"352.63","nvml_version":null,"cuda_version":null,"schema":"v6","cards":[{"address":"0000:02:00.0","id":"10de:1401","subsystem":"3842:2966","name":"GeForce GTX 960","brand":"GeForce","vbios":"84.06.0D.00.01","link":null,"replays":null,"bar1_bytes":268435456,"memory_bytes":2146435072,"memory_used_bytes":14680064,"virtualization":null,"driver_model":null,"encoder_percent":null,"encoder_sessions":null,"throttle_reasons":null,"gsp_firmware":null,"gsp":null,"temperature_c":27,"lost":null}],"unknown":[]}"#);
    }

    #[test]
    fn a_new_version_in_a_vm() {
        let facts = parse(sample("v12")).unwrap();
        insta::assert_snapshot!(serde_json::to_string(&facts).unwrap(), @r#"{"driver_version":"580.95.05","nvml_version":null,"cuda_version":"13.0","schema":"v12","cards":[{"address":"0000:01:00.0","id":"10de:2484","subsystem":"10de:146b","name":"NVIDIA GeForce RTX 3070","brand":"GeForce","vbios":"94.04.3f.00.77","link":{"speed":1,"width":16,"max_speed":4,"max_width":16},"replays":0,"bar1_bytes":8589934592,"memory_bytes":8589934592,"memory_used_bytes":314572800,"virtualization":"pass-through","driver_model":null,"encoder_percent":null,"encoder_sessions":0,"throttle_reasons":["gpu-idle"],"gsp_firmware":"580.95.05","gsp":true,"temperature_c":41,"lost":null}],"unknown":[]}"#);
    }

    #[test]
    fn windows_and_a_card_that_is_lost() {
        let facts = parse(sample("v11")).unwrap();
        insta::assert_snapshot!(serde_json::to_string(&facts).unwrap(), @r#"{"driver_version":"472.12","nvml_version":null,"cuda_version":"11.4","schema":"v11","cards":[{"address":"0000:06:00.0","id":"10de:2484","subsystem":"10de:146b","name":"NVIDIA GeForce RTX 3070","brand":"GeForce","vbios":null,"link":{"speed":1,"width":8,"max_speed":3,"max_width":16},"replays":3,"bar1_bytes":null,"memory_bytes":8589934592,"memory_used_bytes":1031798784,"virtualization":"pass-through","driver_model":"wddm","encoder_percent":null,"encoder_sessions":null,"throttle_reasons":["sw-power-cap","hw-thermal"],"gsp_firmware":null,"gsp":null,"temperature_c":null,"lost":null},{"address":"0000:07:00.0","id":null,"subsystem":null,"name":null,"brand":null,"vbios":null,"link":null,"replays":null,"bar1_bytes":null,"memory_bytes":null,"memory_used_bytes":null,"virtualization":null,"driver_model":null,"encoder_percent":null,"encoder_sessions":null,"throttle_reasons":null,"gsp_firmware":null,"gsp":null,"temperature_c":null,"lost":true}],"unknown":[]}"#);
    }

    #[test]
    fn a_sentence_instead_of_a_document_is_told() {
        let text = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMore.\n";
        insta::assert_snapshot!(parse(text).unwrap_err(), @r#"it ends inside of an element: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.""#);
        assert_eq!(parse("<html></html>").unwrap_err(), "the document is a \"html\"");
    }

    proptest! {
        #[test]
        fn a_damaged_sample_never_panics(at in 0_usize..4000, with in "\\PC", length in 0_usize..40, which in 0_usize..3) {
            let text = sample(["v6", "v11", "v12"][which]);
            let floor = |mut at: usize| {
                at = at.min(text.len());
                while !text.is_char_boundary(at) { at -= 1; }
                at
            };
            let damaged = format!("{}{with}{}", &text[..floor(at)], &text[floor(at + length)..]);
            if let Ok(facts) = parse(&damaged) {
                prop_assert!(facts.cards.len() <= CARDS);
            }
        }

        #[test]
        fn any_value_is_read(value in "\\PC{0,12}|[0-9]{0,25} ?(MiB|GiB|x)?") {
            let value = value.replace(['<', '&'], "");
            let text = format!(
                "<nvidia_smi_log><gpu id='{}'><pci><pci_device_id>{value}</pci_device_id><replay_counter>{value}</replay_counter></pci>\
                 <fb_memory_usage><total>{value}</total></fb_memory_usage></gpu></nvidia_smi_log>",
                value.replace(['\'', '"'], "")
            );
            let _ = parse(&text);
        }
    }
}
