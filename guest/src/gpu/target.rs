//! Which adapter work is done on: how it is asked for, and how an interface's device is recognised as it.

use no43_guest::protocol::GuestFunction;
use no43_guest::work::WorkAdapter;

use super::Stop;
use no43_guest::work::WorkCause;

/// Base class of display controllers.
const DISPLAY: &str = "03";

/// The adapter that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// As it was asked for.
    pub(crate) wanted: String,
    /// PCI address in the guest.
    pub(crate) address: Option<String>,
    /// Vendor and device.
    pub(crate) id: Option<(u16, u16)>,
    /// A renderer on the processor is asked for: for tests, never about a card.
    pub(crate) software: bool,
}

impl Target {
    /// Resolves an address, an id (`10de:2484`), or `software`, by what the guest has; `10de:2484@0000:01:00.0` is
    /// believed as it is, for a guest whose own list cannot be read.
    ///
    /// # Errors
    /// If it is none of these, or nothing here is it.
    pub(crate) fn resolve(wanted: &str, functions: &[GuestFunction]) -> Result<Self, String> {
        let target = Self { wanted: wanted.to_owned(), ..Self::default() };
        if wanted == "software" {
            return Ok(Self { software: true, ..target });
        }
        if let Some((ids, address)) = wanted.split_once('@') {
            let id = id(ids).ok_or_else(|| format!("{ids:?} is no id as 10de:2484"))?;
            return Ok(Self { id: Some(id), address: Some(address.to_lowercase()), ..target });
        }
        if let Some(id) = id(wanted) {
            let same = functions.iter().filter(|f| f.id.as_deref().and_then(self::id) == Some(id));
            let addresses: Vec<&str> = same.map(|f| f.address.as_str()).collect();
            return match addresses.as_slice() {
                [] => Ok(Self { id: Some(id), ..target }), // the interfaces may know it all the same
                [one] => Ok(Self { id: Some(id), address: Some((*one).to_owned()), ..target }),
                more => Err(format!(
                    "{} cards are {wanted}: {}; name one by its address",
                    more.len(),
                    more.join(", ")
                )),
            };
        }
        let full =
            if wanted.matches(':').count() == 1 { format!("0000:{wanted}") } else { wanted.to_owned() };
        let full = full.to_lowercase();
        let function = functions.iter().find(|f| f.address == full).ok_or_else(|| {
            let is_display = |f: &&GuestFunction| f.class.as_deref().is_some_and(|c| c.starts_with(DISPLAY));
            let there: Vec<_> = functions.iter().filter(is_display).map(|f| f.address.as_str()).collect();
            format!("nothing here is {wanted}; displays are at: {}", there.join(", "))
        })?;
        Ok(Self { address: Some(full), id: function.id.as_deref().and_then(id), ..target })
    }

    /// Vendor of the card, if known.
    pub(crate) fn vendor(&self) -> Option<u16> {
        self.id.map(|(vendor, _)| vendor)
    }

    /// The first display function with a vendor that makes cards, else the first display function.
    pub(crate) fn choose(functions: &[GuestFunction]) -> Option<&str> {
        let displays =
            || functions.iter().filter(|f| f.class.as_deref().is_some_and(|c| c.starts_with(DISPLAY)));
        let makes_cards = |f: &&GuestFunction| {
            let id = f.id.as_deref().unwrap_or_default();
            ["10de:", "1002:", "8086:"].iter().any(|vendor| id.starts_with(vendor))
        };
        displays().find(makes_cards).or_else(|| displays().next()).map(|f| f.address.as_str())
    }

    /// The place in `adapters` of the one that is asked for. An address decides where the interface says one; else the
    /// ids do, if only one adapter has them.
    ///
    /// # Errors
    /// A reason to skip: there is no such adapter.
    pub(crate) fn find(&self, interface: &str, adapters: &[WorkAdapter]) -> Result<usize, Stop> {
        let position = |fits: &dyn Fn(&WorkAdapter) -> bool| -> Vec<usize> {
            (0..adapters.len()).filter(|n| fits(&adapters[*n])).collect()
        };
        if self.software {
            let found = position(&|a| a.software == Some(true)).first().copied();
            return found.ok_or_else(|| {
                Stop::new(WorkCause::NoComputeDevice, format!("{interface} has no software renderer here"))
            });
        }
        let real = |a: &WorkAdapter| a.software != Some(true);
        if let Some(address) = &self.address
            && let [one, ..] = position(&|a| real(a) && a.address.as_deref() == Some(address)).as_slice()
        {
            return Ok(*one);
        }
        // Only among those that do not say where they are: the others are other cards.
        let same_id = |a: &WorkAdapter| {
            let unplaced = a.address.is_none() || self.address.is_none();
            real(a) && unplaced && self.id.is_some() && a.id.as_deref().and_then(id) == self.id
        };
        match position(&same_id).as_slice() {
            [one] => Ok(*one),
            [] if !adapters.is_empty() && !adapters.iter().any(real) => Err(Stop::new(
                WorkCause::OnlySoftware,
                format!("{interface} offers only renderers on the processor: {}", names(adapters)),
            )),
            [] => Err(Stop::new(
                WorkCause::NoComputeDevice,
                format!("no {interface} device is {}; there are: {}", self.wanted, names(adapters)),
            )),
            more => Err(Stop::new(
                WorkCause::NotSupported,
                format!(
                    "{} {interface} devices could be {}, and {interface} does not say which",
                    more.len(),
                    self.wanted
                ),
            )),
        }
    }
}

/// Renderers on the processor that may not say so themselves, by a word in their name.
#[cfg(any(windows, test))]
const PROCESSOR: &[&str] = &["basic render", "warp", "llvmpipe", "lavapipe", "softpipe", "swiftshader"];

/// Whether an adapter of Direct3D renders on the processor, by its name and ids. "Microsoft Basic Render Driver", which
/// is WARP, has ids of its own in every language of Windows.
#[cfg(any(windows, test))]
pub(super) fn renders_on_processor(name: &str, vendor: u32, device: u32) -> bool {
    let name = name.to_lowercase();
    (vendor, device) == (0x1414, 0x8c) || PROCESSOR.iter().any(|word| name.contains(word))
}

fn names(adapters: &[WorkAdapter]) -> String {
    let names: Vec<&str> = adapters.iter().take(8).map(|adapter| adapter.name.as_str()).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Reads `10de:2484`.
fn id(text: &str) -> Option<(u16, u16)> {
    let (vendor, device) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 4).then(|| u16::from_str_radix(text, 16).ok()).flatten();
    Some((number(vendor)?, number(device)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn function(address: &str, id: &str, class: &str) -> GuestFunction {
        GuestFunction {
            address: address.into(),
            id: Some(id.into()),
            class: Some(class.into()),
            ..GuestFunction::default()
        }
    }

    fn adapter(name: &str, address: Option<&str>, id: &str, software: bool) -> WorkAdapter {
        WorkAdapter {
            name: name.into(),
            address: address.map(Into::into),
            id: Some(id.into()),
            software: Some(software),
            ..WorkAdapter::default()
        }
    }

    fn cause(found: Result<usize, Stop>) -> String {
        found.map_or_else(|stop| format!("{:?}: {}", stop.cause, stop.reason), |n| n.to_string())
    }

    #[test]
    fn an_adapter_is_asked_for_by_address_id_or_word() {
        let functions = [
            function("0000:00:01.0", "1234:1111", "030000"),
            function("0000:01:00.0", "10de:2484", "030000"),
            function("0000:01:00.1", "10de:228b", "040300"),
        ];
        let resolve = |text| Target::resolve(text, &functions);
        assert_eq!(Target::choose(&functions), Some("0000:01:00.0"));
        let card = resolve("01:00.0").unwrap();
        assert_eq!((card.address.as_deref(), card.id), (Some("0000:01:00.0"), Some((0x10de, 0x2484))));
        assert_eq!(resolve("10DE:2484").unwrap().address.as_deref(), Some("0000:01:00.0"));
        assert!(resolve("software").unwrap().software);
        assert_eq!(resolve("1002:0001").unwrap().address, None);
        let told = resolve("10de:1111@0000:09:00.0").unwrap();
        assert_eq!((told.address.as_deref(), told.id), (Some("0000:09:00.0"), Some((0x10de, 0x1111))));
        let error = resolve("0000:09:00.0").unwrap_err();
        assert_eq!(error, "nothing here is 0000:09:00.0; displays are at: 0000:00:01.0, 0000:01:00.0");
        let twins = [functions[1].clone(), function("0000:02:00.0", "10de:2484", "030000")];
        assert!(Target::resolve("10de:2484", &twins).unwrap_err().starts_with("2 cards are"));
    }

    #[test]
    fn software_is_never_the_card() {
        let card = Target {
            wanted: "0000:01:00.0".into(),
            address: Some("0000:01:00.0".into()),
            id: Some((0x10de, 0x2484)),
            software: false,
        };
        let lavapipe = adapter("llvmpipe", None, "10005:0", true);
        let liar = adapter("says it is the card", Some("0000:01:00.0"), "10de:2484", true);
        let real = adapter("RTX 3070", Some("0000:01:00.0"), "10de:2484", false);
        let elsewhere = adapter("RTX 3070", Some("0000:02:00.0"), "10de:2484", false);
        let placeless = adapter("RTX 3070", None, "10de:2484", false);
        let find = |list: &[&WorkAdapter]| {
            cause(card.find("Vulkan", &list.iter().map(|a| (*a).clone()).collect::<Vec<_>>()))
        };
        assert_eq!(find(&[&lavapipe, &elsewhere, &real]), "2");
        assert_eq!(find(&[&lavapipe, &placeless]), "1");
        insta::assert_snapshot!(find(&[&lavapipe, &liar]), @"OnlySoftware: Vulkan offers only renderers on the processor: llvmpipe, says it is the card");
        insta::assert_snapshot!(find(&[&elsewhere]), @"NoComputeDevice: no Vulkan device is 0000:01:00.0; there are: RTX 3070");
        insta::assert_snapshot!(find(&[]), @"NoComputeDevice: no Vulkan device is 0000:01:00.0; there are: none");
        insta::assert_snapshot!(find(&[&placeless, &placeless]), @"NotSupported: 2 Vulkan devices could be 0000:01:00.0, and Vulkan does not say which");
        let software = Target { software: true, ..Target::default() };
        assert_eq!(software.find("Vulkan", &[real.clone(), lavapipe.clone()]).unwrap(), 1);
        assert_eq!(
            cause(software.find("Vulkan", &[real])),
            "NoComputeDevice: Vulkan has no software renderer here"
        );
    }

    #[test]
    fn warp_and_its_like_are_known_by_name_or_ids() {
        assert!(renders_on_processor("Microsoft Basic Render Driver", 0, 0));
        assert!(renders_on_processor("Pilote de rendu", 0x1414, 0x8c));
        assert!(renders_on_processor("llvmpipe (LLVM 15.0.6, 256 bits)", 0, 0));
        assert!(!renders_on_processor("NVIDIA GeForce RTX 3070", 0x10de, 0x2484));
        assert!(!renders_on_processor("Microsoft Hyper-V Video", 0x1414, 0x5353));
    }

    proptest! {
        #[test]
        fn any_word_is_read(text in "\\PC{0,20}|[0-9a-f:.]{0,14}") {
            let _ = Target::resolve(&text, &[function("0000:01:00.0", "10de:2484", "030000")]);
        }
    }
}
