//! NVML: what NVIDIA's management library says about the driver and its cards. Types and numbers are those of `nvml.h`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;

use no43_guest::nvidia::{NvidiaCard, NvidiaFacts, THROTTLE_REASONS};
use no43_guest::protocol::GuestLink;

use super::{Library, text};

const LIBRARY: &[&str] = if cfg!(windows) { &["nvml.dll"] } else { &["libnvidia-ml.so.1"] };

type Code = c_uint;
type Card = *mut c_void;

/// Most cards that are asked about.
const CARDS: c_uint = 64;

const NOT_SUPPORTED: Code = 3;
const GPU_IS_LOST: Code = 15;

/// Names of the codes that say something about a card or driver.
const CODES: &[(Code, &str)] = &[
    (NOT_SUPPORTED, "not supported"),
    (4, "no permission"),
    (9, "driver not loaded"),
    (GPU_IS_LOST, "GPU is lost"),
    (16, "reset required"),
    (18, "driver and library differ in version"),
    (999, "unknown error"),
];

/// `nvmlDriverModel_t` and `nvmlGpuVirtualizationMode_t`, by number.
const MODELS: &[&str] = &["wddm", "tcc", "mcdm"];
const MODES: &[&str] = &["none", "pass-through", "vgpu", "host-vgpu", "host-vsga"];

/// `nvmlPciInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pci {
    legacy: [u8; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    id: c_uint,
    subsystem: c_uint,
    address: [u8; 32],
}

struct Nvml {
    library: Library,
    unknown: Vec<String>,
}

/// What went wrong with one question.
enum Refused {
    /// The library is older than the function.
    NoFunction,
    Code(Code),
}

impl Nvml {
    /// Calls `int name(card, T *answer)`.
    fn ask<T: Copy>(&self, name: &CStr, card: Card, mut answer: T) -> Result<T, Refused> {
        type Ask = unsafe extern "C" fn(Card, *mut c_void) -> Code;
        // SAFETY: every function that is asked this way has that shape, and writes a `T`; callers name both together.
        let code = unsafe {
            let ask: Ask = self.library.function(name).ok_or(Refused::NoFunction)?;
            ask(card, (&raw mut answer).cast())
        };
        if code == 0 { Ok(answer) } else { Err(Refused::Code(code)) }
    }

    /// Calls `int name(card, char *text, unsigned length)`.
    fn ask_text(&self, name: &CStr, card: Card) -> Result<String, Refused> {
        type Ask = unsafe extern "C" fn(Card, *mut c_char, c_uint) -> Code;
        let mut bytes = [0_u8; 96]; // NVML's longest texts have 96 with the NUL
        // SAFETY: as above; the buffer is as long as said.
        let code = unsafe {
            let ask: Ask = self.library.function(name).ok_or(Refused::NoFunction)?;
            ask(card, bytes.as_mut_ptr().cast(), bytes.len() as c_uint)
        };
        if code == 0 { Ok(text(&bytes)) } else { Err(Refused::Code(code)) }
    }

    /// Calls `int name(char *text, unsigned length)`.
    fn ask_system(&self, name: &CStr) -> Result<String, Refused> {
        type Ask = unsafe extern "C" fn(*mut c_char, c_uint) -> Code;
        let mut bytes = [0_u8; 96];
        // SAFETY: as above.
        let code = unsafe {
            let ask: Ask = self.library.function(name).ok_or(Refused::NoFunction)?;
            ask(bytes.as_mut_ptr().cast(), bytes.len() as c_uint)
        };
        if code == 0 { Ok(text(&bytes)) } else { Err(Refused::Code(code)) }
    }

    /// Calls `int name(card, unsigned *, unsigned *)` and takes the first.
    fn ask_first(&self, name: &CStr, card: Card) -> Result<c_uint, Refused> {
        type Ask = unsafe extern "C" fn(Card, *mut c_uint, *mut c_uint) -> Code;
        let (mut first, mut second) = (0, 0);
        // SAFETY: as above.
        let code = unsafe {
            let ask: Ask = self.library.function(name).ok_or(Refused::NoFunction)?;
            ask(card, &raw mut first, &raw mut second)
        };
        if code == 0 { Ok(first) } else { Err(Refused::Code(code)) }
    }

    /// Notes what was refused; a question that a card does not support is no news on consumer cards, but still unknown.
    fn noted<T>(&mut self, what: &str, answer: Result<T, Refused>) -> Option<T> {
        let reason = match answer {
            Ok(answer) => return Some(answer),
            Err(Refused::NoFunction) => "this library does not have it".to_owned(),
            Err(Refused::Code(code)) => code_words(code),
        };
        self.unknown.push(format!("{what}: {reason}"));
        None
    }
}

fn code_words(code: Code) -> String {
    let name = CODES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name);
    name.map_or_else(|| format!("error {code}"), str::to_owned)
}

/// Everything that NVML says; the error is the reason why it says nothing.
pub(crate) fn facts() -> Result<NvidiaFacts, String> {
    let library = Library::open(LIBRARY)?;
    type Init = unsafe extern "C" fn() -> Code;
    // SAFETY: it takes nothing.
    let code = unsafe {
        let init: Init = library.function(c"nvmlInit_v2").ok_or("NVML has no nvmlInit_v2")?;
        init()
    };
    if code != 0 {
        return Err(format!("NVML does not start: {}", code_words(code)));
    }
    let mut nvml = Nvml { library, unknown: Vec::new() };
    let driver = nvml.ask_system(c"nvmlSystemGetDriverVersion");
    let version = nvml.ask_system(c"nvmlSystemGetNVMLVersion");
    // These two take one pointer, which stands where other questions have the card.
    let (cuda, count) =
        (nvml.ask_number(c"nvmlSystemGetCudaDriverVersion_v2"), nvml.ask_number(c"nvmlDeviceGetCount_v2"));
    let driver_version = nvml.noted("driver version", driver);
    let nvml_version = nvml.noted("NVML version", version);
    let cuda_version = nvml.noted("CUDA version", cuda).map(|n| format!("{}.{}", n / 1000, n % 1000 / 10));
    let count = nvml.noted("number of cards", count).unwrap_or(0);
    let cards = (0..count.min(CARDS)).map(|index| card(&mut nvml, index)).collect();
    Ok(NvidiaFacts { driver_version, nvml_version, cuda_version, schema: None, cards, unknown: nvml.unknown })
}

impl Nvml {
    /// Calls `int name(unsigned *)`.
    fn ask_number(&self, name: &CStr) -> Result<c_uint, Refused> {
        type Ask = unsafe extern "C" fn(*mut c_uint) -> Code;
        let mut answer = 0;
        // SAFETY: the functions that are asked this way have that shape (one answers an int of the same size).
        let code = unsafe {
            let ask: Ask = self.library.function(name).ok_or(Refused::NoFunction)?;
            ask(&raw mut answer)
        };
        if code == 0 { Ok(answer) } else { Err(Refused::Code(code)) }
    }

    fn handle(&self, index: c_uint) -> Result<Card, Refused> {
        type Ask = unsafe extern "C" fn(c_uint, *mut Card) -> Code;
        let mut card = ptr::null_mut();
        // SAFETY: the type is the one of the header.
        let code = unsafe {
            let ask: Ask =
                self.library.function(c"nvmlDeviceGetHandleByIndex_v2").ok_or(Refused::NoFunction)?;
            ask(index, &raw mut card)
        };
        if code == 0 { Ok(card) } else { Err(Refused::Code(code)) }
    }

    fn temperature(&self, card: Card) -> Result<c_uint, Refused> {
        type Ask = unsafe extern "C" fn(Card, c_int, *mut c_uint) -> Code;
        let mut answer = 0;
        // SAFETY: as above; sensor 0 is the chip.
        let code = unsafe {
            let ask: Ask = self.library.function(c"nvmlDeviceGetTemperature").ok_or(Refused::NoFunction)?;
            ask(card, 0, &raw mut answer)
        };
        if code == 0 { Ok(answer) } else { Err(Refused::Code(code)) }
    }
}

fn card(nvml: &mut Nvml, index: c_uint) -> NvidiaCard {
    let handle = match nvml.handle(index) {
        Ok(handle) => handle,
        Err(refused) => {
            let lost = matches!(refused, Refused::Code(GPU_IS_LOST)).then_some(true);
            nvml.noted::<()>(&format!("card {index}"), Err(refused));
            return NvidiaCard { lost, ..NvidiaCard::default() };
        }
    };
    let name = |what: &str| format!("card {index}: {what}");
    macro_rules! number {
        ($what:literal, $function:literal) => {{
            let answer = nvml.ask::<c_uint>($function, handle, 0);
            nvml.noted(&name($what), answer)
        }};
    }
    let zero = Pci { legacy: [0; 16], domain: 0, bus: 0, device: 0, id: 0, subsystem: 0, address: [0; 32] };
    let pci = nvml.ask(c"nvmlDeviceGetPciInfo_v3", handle, zero);
    let pci = nvml.noted(&name("PCI address"), pci);
    let ids = |word: c_uint| format!("{:04x}:{:04x}", word & 0xffff, word >> 16); // vendor in the low half
    let link = GuestLink {
        speed: number!("link generation", c"nvmlDeviceGetCurrPcieLinkGeneration"),
        width: number!("link width", c"nvmlDeviceGetCurrPcieLinkWidth"),
        max_speed: number!("highest link generation", c"nvmlDeviceGetMaxPcieLinkGeneration"),
        max_width: number!("largest link width", c"nvmlDeviceGetMaxPcieLinkWidth"),
    };
    // total, free, used; BAR 1 first
    let bar1 = nvml.ask::<[c_ulonglong; 3]>(c"nvmlDeviceGetBAR1MemoryInfo", handle, [0; 3]);
    let memory = nvml.ask::<[c_ulonglong; 3]>(c"nvmlDeviceGetMemoryInfo", handle, [0; 3]);
    let (bar1, memory) = (nvml.noted(&name("BAR 1"), bar1), nvml.noted(&name("memory"), memory));
    let model = if cfg!(windows) {
        let model = nvml.ask_first(c"nvmlDeviceGetDriverModel", handle);
        nvml.noted(&name("driver model"), model)
    } else {
        None
    };
    let reasons = match nvml.ask::<c_ulonglong>(c"nvmlDeviceGetCurrentClocksEventReasons", handle, 0) {
        // the older name of the same
        Err(Refused::NoFunction) => nvml.ask(c"nvmlDeviceGetCurrentClocksThrottleReasons", handle, 0),
        answer => answer,
    };
    let lost = matches!(reasons, Err(Refused::Code(GPU_IS_LOST)));
    let reasons = nvml.noted(&name("throttle reasons"), reasons);
    let texts = [
        ("name", nvml.ask_text(c"nvmlDeviceGetName", handle)),
        ("video BIOS", nvml.ask_text(c"nvmlDeviceGetVbiosVersion", handle)),
        // it takes no length: its texts fit into the same room
        ("GSP firmware", nvml.ask_text(c"nvmlDeviceGetGspFirmwareVersion", handle)),
    ];
    let [label, vbios, gsp_firmware] = texts.map(|(what, answer)| nvml.noted(&name(what), answer));
    let gsp = nvml.ask_first(c"nvmlDeviceGetGspFirmwareMode", handle);
    let gsp = nvml.noted(&name("GSP"), gsp);
    let temperature = nvml.temperature(handle);
    let temperature_c = nvml.noted(&name("temperature"), temperature);
    NvidiaCard {
        address: pci.map(|p| format!("{:04x}:{:02x}:{:02x}.0", p.domain, p.bus, p.device)),
        id: pci.map(|p| ids(p.id)),
        subsystem: pci.map(|p| ids(p.subsystem)),
        name: label,
        vbios,
        link: (link != GuestLink::default()).then_some(link),
        replays: number!("replays", c"nvmlDeviceGetPcieReplayCounter").map(u64::from),
        bar1_bytes: bar1.map(|sizes| sizes[0]),
        memory_bytes: memory.map(|sizes| sizes[0]),
        memory_used_bytes: memory.map(|sizes| sizes[2]),
        virtualization: number!("virtualisation", c"nvmlDeviceGetVirtualizationMode").map(|n| word(MODES, n)),
        driver_model: model.map(|n| word(MODELS, n)),
        throttle_reasons: reasons.map(reason_words),
        gsp_firmware,
        gsp: gsp.map(|n| n != 0),
        temperature_c,
        lost: Some(lost),
        ..NvidiaCard::default()
    }
}

fn word(table: &[&str], number: c_uint) -> String {
    table.get(number as usize).map_or_else(|| number.to_string(), |word| (*word).to_owned())
}

fn reason_words(bits: u64) -> Vec<String> {
    let known = THROTTLE_REASONS.iter().filter(|(bit, _)| bits & bit != 0);
    let rest = THROTTLE_REASONS.iter().fold(bits, |rest, (bit, _)| rest & !bit);
    let other = (rest != 0).then(|| format!("{rest:#x}"));
    known.map(|(_, name)| (*name).to_owned()).chain(other).collect()
}
