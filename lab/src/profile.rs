//! A lab profile: which passthrough host to pretend, as a person writes it in TOML.
//!
//! Everything is checked here, once, with file, line and key; what comes out can be built as it is.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

/// The profiles that come with no43, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("one-card", include_str!("../../recipes/lab/one-card.toml")),
    ("three-cards", include_str!("../../recipes/lab/three-cards.toml")),
    ("bad-groups", include_str!("../../recipes/lab/bad-groups.toml")),
];

/// The profile that is used when none is named.
pub const DEFAULT_PROFILE: &str = "three-cards";

/// Slots on the root bus that are kept for cards, and functions in each.
const MAX_SLOTS: usize = 8;
const MAX_FUNCTIONS: usize = 8;
/// Cards on one switch or bridge; it has room for more, the lab host's memory has not.
const MAX_CARDS_ON_A_PORT: usize = 8;

/// A checked profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The built-in name, or the file's name without `.toml`.
    pub name: String,
    /// One line for `no43 lab ls`.
    pub about: String,
    /// The machine around the cards.
    pub host: Host,
    /// In the order in which the board counts them: PCI bus numbers follow it.
    pub ports: Vec<Port>,
    /// In the order of the file.
    pub cards: Vec<Card>,
}

/// The lab host without its cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The board's own display.
    pub display: HostDisplay,
}

/// The board's own display, which the host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostDisplay {
    /// A VGA adapter, `boot_vga` in sysfs.
    Vga,
    /// None: as on a server where every card may be lent.
    None,
}

/// Where cards are plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Letters, digits and `-`.
    pub name: String,
    /// What hangs there.
    pub kind: PortKind,
    /// The port isolates what is behind it (Access Control Services). Root ports only; a switch of the lab always does, a
    /// bridge never can.
    pub acs: bool,
    /// Its device on the root bus, counted from 0, and the function in it.
    pub place: (u8, u8),
    /// Other ports are functions of the same device.
    pub shares_device: bool,
}

/// What a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A PCI Express root port: one card.
    Root,
    /// A PCI Express switch behind a root port: each card on a downstream port of its own.
    Switch,
    /// A conventional PCI bridge behind a root port: its cards are in one group.
    Bridge,
}

/// An emulated graphics card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Letters, digits and `-`.
    pub name: String,
    /// Index in [`Profile::ports`].
    pub port: usize,
    /// Function 0.
    pub video: Video,
    /// Function 1, if there is one.
    pub audio: Audio,
}

/// The device that stands for a card's video function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Video {
    /// A VGA adapter without the VGA ports: what a second graphics card is.
    SecondaryVga,
    /// A plain frame buffer.
    BochsDisplay,
}

/// The device that stands for a card's audio function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audio {
    /// Intel's ICH6 audio controller with a codec.
    IntelHda,
    /// Intel's ICH9 audio controller with a codec.
    #[serde(rename = "ich9-intel-hda")]
    Ich9IntelHda,
    /// The card has a video function only.
    None,
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProfileError {
    /// Neither a built-in name nor a file.
    #[error("no lab profile '{asked}': built in are {}; or give the path of a .toml file", names())]
    Unknown {
        /// What was asked for.
        asked: String,
    },
    /// The file cannot be read.
    #[error("failed to read the lab profile {file}: {reason}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// Something in it is wrong.
    #[error("{file}:{line}: {problem}")]
    Content {
        /// The file, or `<name> (built in)`.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, with the key.
        problem: Problem,
    },
}

/// What is wrong in a profile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{0}")]
    Toml(String),
    /// A value outside of what QEMU or the lab host can do.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// As written.
        value: String,
        /// What would be right.
        why: String,
    },
    /// Two things of one name.
    #[error("{key} = \"{name}\": there is another {what} of that name")]
    Twice {
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
        /// Port or card.
        what: &'static str,
    },
    /// A name that nothing has.
    #[error("{key} = \"{name}\": there is no such port; there are: {there}")]
    NoPort {
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
        /// The ports' names.
        there: String,
    },
    /// A root port with two cards, or more than fit.
    #[error("{key} = \"{port}\": {why}")]
    Full {
        /// The key.
        key: &'static str,
        /// The port.
        port: String,
        /// What would be right.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    about: String,
    host: RawHost,
    #[serde(default)]
    port: Vec<RawPort>,
    #[serde(default)]
    card: Vec<RawCard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    cpus: Spanned<u16>,
    memory: Spanned<String>,
    display: HostDisplay,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    name: Spanned<String>,
    kind: Option<PortKind>,
    acs: Option<Spanned<bool>>,
    beside: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCard {
    name: Spanned<String>,
    port: Option<Spanned<String>>,
    video: Video,
    audio: Audio,
}

/// A problem and where it is.
type At<T> = Result<T, (Range<usize>, Problem)>;

impl Profile {
    /// A built-in profile by its name, or the file at that path.
    ///
    /// # Errors
    /// [`ProfileError`] with file, line and key.
    pub fn load(name_or_path: &str) -> Result<Profile, ProfileError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Profile::parse(name, &format!("{name} (built in)"), text);
        }
        let path = Path::new(name_or_path);
        if !path.is_file() {
            return Err(ProfileError::Unknown { asked: name_or_path.to_owned() });
        }
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ProfileError::Read { file: file.clone(), reason: error.to_string() })?;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("profile");
        Profile::parse(stem, &file, &text)
    }

    /// The built-in profiles.
    ///
    /// # Errors
    /// None that a test of this crate would not have found.
    pub fn built_in() -> Result<Vec<Profile>, ProfileError> {
        BUILT_IN.iter().map(|(name, _)| Profile::load(name)).collect()
    }

    /// Reads and checks a profile. `file` is for messages.
    ///
    /// # Errors
    /// [`ProfileError::Content`].
    pub fn parse(name: &str, file: &str, text: &str) -> Result<Profile, ProfileError> {
        let content = |(span, problem): (Range<usize>, Problem)| ProfileError::Content {
            file: file.to_owned(),
            line: line_of(text, span.start),
            problem,
        };
        let raw: File = toml::from_str(text).map_err(|error| {
            content((error.span().unwrap_or(0..0), Problem::Toml(error.message().to_owned())))
        })?;
        check_file_name(name).map_err(content)?;
        let host = host(&raw.host).map_err(content)?;
        let (mut ports, mut cards) = (ports(&raw.port).map_err(content)?, Vec::new());
        for card in &raw.card {
            let checked = self::card(card, &mut ports, &cards).map_err(content)?;
            cards.push(checked);
        }
        let about = raw.about.lines().next().unwrap_or_default().to_owned();
        Ok(Profile { name: name.to_owned(), about, host, ports, cards })
    }
}

fn check_file_name(name: &str) -> At<()> {
    check_name("the file's name", name).map_err(|problem| (0..0, problem))
}

fn host(raw: &RawHost) -> At<Host> {
    let cpus = *raw.cpus.get_ref();
    if !(1..=64).contains(&cpus) {
        let why = "the lab host takes 1 to 64".to_owned();
        return Err((raw.cpus.span(), Problem::Value { key: "host.cpus", value: cpus.to_string(), why }));
    }
    let memory = raw.memory.get_ref();
    let memory_mib = mib(memory).filter(|mib| (1024..=1 << 20).contains(mib)).ok_or_else(|| {
        let why = "from 1 GiB to 1 TiB, written like \"3000 MiB\" or \"3 GiB\"".to_owned();
        (raw.memory.span(), Problem::Value { key: "host.memory", value: format!("\"{memory}\""), why })
    })?;
    Ok(Host { cpus, memory_mib, display: raw.display })
}

fn mib(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "MiB" => Some(number),
        "GiB" => number.checked_mul(1024),
        _ => None,
    }
}

fn ports(raw: &[RawPort]) -> At<Vec<Port>> {
    let mut ports: Vec<Port> = Vec::new();
    for port in raw {
        let name = port.name.get_ref();
        named(&port.name, "port.name", "port", ports.iter().map(|port| port.name.as_str()))?;
        let kind = port.kind.unwrap_or(PortKind::Root);
        if kind != PortKind::Root
            && let Some(acs) = &port.acs
        {
            let why =
                "only a root port has this switch: a lab switch always isolates, a bridge never".to_owned();
            return Err((
                acs.span(),
                Problem::Value { key: "port.acs", value: acs.get_ref().to_string(), why },
            ));
        }
        let place = match &port.beside {
            None => (next_device(&ports, || port.name.span())?, 0),
            Some(beside) => next_function(&mut ports, beside)?,
        };
        let acs = port.acs.as_ref().is_none_or(|acs| *acs.get_ref());
        ports.push(Port { name: name.clone(), kind, acs, place, shares_device: place.1 > 0 });
    }
    Ok(ports)
}

fn next_device(ports: &[Port], span: impl Fn() -> Range<usize>) -> At<u8> {
    let device = ports.iter().map(|port| usize::from(port.place.0) + 1).max().unwrap_or(0);
    match u8::try_from(device) {
        Ok(free) if device < MAX_SLOTS => Ok(free),
        _ => {
            let why =
                format!("the lab board has {MAX_SLOTS} devices for ports; put some ports `beside` others");
            Err((span(), Problem::Value { key: "port", value: format!("number {}", device + 1), why }))
        }
    }
}

fn next_function(ports: &mut [Port], beside: &Spanned<String>) -> At<(u8, u8)> {
    let other = find(ports, beside, "port.beside")?;
    let device = ports[other].place.0;
    let used = ports.iter().filter(|port| port.place.0 == device).count();
    if used >= MAX_FUNCTIONS {
        let why = format!("a PCI device has at most {MAX_FUNCTIONS} functions");
        return Err((
            beside.span(),
            Problem::Full { key: "port.beside", port: ports[other].name.clone(), why },
        ));
    }
    ports.iter_mut().filter(|port| port.place.0 == device).for_each(|port| port.shares_device = true);
    Ok((device, u8::try_from(used).unwrap_or(0)))
}

fn card(raw: &RawCard, ports: &mut Vec<Port>, cards: &[Card]) -> At<Card> {
    let name = raw.name.get_ref();
    named(&raw.name, "card.name", "card", cards.iter().map(|card| card.name.as_str()))?;
    let port = match &raw.port {
        Some(port) => {
            let index = find(ports, port, "card.port")?;
            let on_it = cards.iter().filter(|card| card.port == index).count();
            let (max, why) = match ports[index].kind {
                PortKind::Root => {
                    (1, "a root port takes one card; a switch or a bridge takes several".to_owned())
                }
                _ => (MAX_CARDS_ON_A_PORT, format!("the lab puts at most {MAX_CARDS_ON_A_PORT} cards there")),
            };
            if on_it >= max {
                let port_name = ports[index].name.clone();
                return Err((port.span(), Problem::Full { key: "card.port", port: port_name, why }));
            }
            index
        }
        None => {
            let own = format!("{name}-port");
            let device = next_device(ports, || raw.name.span())?;
            named(
                &Spanned::new(raw.name.span(), own.clone()),
                "card.name",
                "port",
                ports.iter().map(|p| p.name.as_str()),
            )?;
            let place = (device, 0);
            ports.push(Port { name: own, kind: PortKind::Root, acs: true, place, shares_device: false });
            ports.len() - 1
        }
    };
    Ok(Card { name: name.clone(), port, video: raw.video, audio: raw.audio })
}

fn find(ports: &[Port], name: &Spanned<String>, key: &'static str) -> At<usize> {
    ports.iter().position(|port| port.name == *name.get_ref()).ok_or_else(|| {
        let there: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        let there = if there.is_empty() { "none above this line".to_owned() } else { there.join(", ") };
        (name.span(), Problem::NoPort { key, name: name.get_ref().clone(), there })
    })
}

fn named<'a>(
    name: &Spanned<String>,
    key: &'static str,
    what: &'static str,
    others: impl IntoIterator<Item = &'a str>,
) -> At<()> {
    check_name(key, name.get_ref()).map_err(|problem| (name.span(), problem))?;
    if others.into_iter().any(|other| other == name.get_ref()) {
        return Err((name.span(), Problem::Twice { key, name: name.get_ref().clone(), what }));
    }
    Ok(())
}

/// Names become QEMU ids and parts of file names.
fn check_name(key: &'static str, name: &str) -> Result<(), Problem> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=32).contains(&name.len()) && name.bytes().all(fine) && name.as_bytes()[0].is_ascii_lowercase() {
        return Ok(());
    }
    let why = "a name has 1 to 32 small letters, digits and '-', and starts with a letter".to_owned();
    Err(Problem::Value { key, value: format!("\"{name}\""), why })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn names() -> String {
    BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.about)
    }
}

#[cfg(test)]
mod tests;
