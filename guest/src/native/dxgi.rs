//! DXGI: which adapters Windows renders with, and where they are. Types and numbers are those of dxgi.h and d3dkmthk.h.

use std::ptr;

use windows_sys::core::GUID;

use super::com::{Code, Failed, Raw, checked, interface, made};
use super::screen::Part;
use super::{Library, text};

static FACTORY: GUID = GUID::from_u128(0x770aae78_f26f_4dba_a829_253c83d1b387);
static DXGI_DEVICE: GUID = GUID::from_u128(0x54ec77fa_1377_44e6_8c32_88fd5f44c84c);

/// `DXGI_ADAPTER_FLAG_SOFTWARE`.
const SOFTWARE: u32 = 2;

/// Most adapters that are looked at.
const ADAPTERS: u32 = 32;

/// `KMTQAITYPE_ADAPTERADDRESS`.
const QUERY_ADDRESS: i32 = 6;

interface! {
    /// `IDXGIFactory1`.
    Factory {
        12 adapter(index: u32, answer: *mut Raw) -> Code;
    }
}

interface! {
    /// `IDXGIAdapter1`.
    DxgiAdapter {
        7 output(index: u32, answer: *mut Raw) -> Code;
        9 driver_version(interface: *const GUID, answer: *mut u64) -> Code;
        10 describe(answer: *mut Description) -> Code;
    }
}

interface! {
    /// `IDXGIOutput`.
    DxgiOutput {
        7 describe(answer: *mut OutputDescription) -> Code;
    }
}

/// `DXGI_OUTPUT_DESC`.
#[repr(C)]
struct OutputDescription {
    name: [u16; 32],
    /// Left, top, right, bottom.
    place: [i32; 4],
    attached: i32,
    rotation: u32,
    monitor: Raw,
}

/// An output of an adapter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Windows shows a part of the desktop on it.
    pub(crate) attached: bool,
    /// Which part.
    pub(crate) part: Part,
}

/// `DXGI_ADAPTER_DESC1`.
#[repr(C)]
struct Description {
    name: [u16; 128],
    vendor: u32,
    device: u32,
    subsystem: u32,
    revision: u32,
    own_memory: usize,
    own_system_memory: usize,
    shared_memory: usize,
    luid: [u32; 2],
    flags: u32,
}

/// An adapter.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(super) object: Raw,
    pub(crate) name: String,
    pub(crate) vendor: u32,
    pub(crate) device: u32,
    /// DXGI itself says that it renders on the processor.
    pub(crate) software: bool,
    /// Bus, device and function, if the kernel's part of the driver says them.
    pub(crate) place: Option<[u32; 3]>,
    /// Version of the driver's part in processes.
    pub(crate) driver: Option<u64>,
    /// Its own memory in bytes.
    pub(crate) memory: u64,
}

impl Adapter {
    /// Its outputs, in the order of DXGI; one that says nothing is left out.
    pub(crate) fn outputs(&self) -> Vec<Output> {
        const OUTPUTS: u32 = 16;
        let mut outputs = Vec::new();
        for index in 0..OUTPUTS {
            // SAFETY: the adapter lives.
            let object =
                made("EnumOutputs", |answer| unsafe { DxgiAdapter(self.object).output(index, answer) });
            let Ok(object) = object else { break }; // not found: there are no more
            let mut d = OutputDescription {
                name: [0; 32],
                place: [0; 4],
                attached: 0,
                rotation: 0,
                monitor: ptr::null_mut(),
            };
            // SAFETY: it takes an answer of the size that the header says.
            if unsafe { DxgiOutput(object).describe(&raw mut d) } < 0 {
                continue;
            }
            let [left, top, right, bottom] = d.place;
            let length =
                |from: i32, to: i32| u32::try_from(i64::from(to) - i64::from(from)).unwrap_or_default();
            let part = Part { left, top, width: length(left, right), height: length(top, bottom) };
            outputs.push(Output { attached: d.attached != 0, part });
        }
        outputs
    }
}

/// Why there are no adapters.
#[derive(Debug)]
pub(crate) enum Absent {
    /// No library.
    Library(String),
    /// It does not answer.
    Failed(Failed),
}

/// The adapters, in the order of DXGI.
pub(crate) fn adapters() -> Result<Vec<Adapter>, Absent> {
    type Create = unsafe extern "system" fn(*const GUID, *mut Raw) -> Code;
    let library = Library::open(&["dxgi.dll"]).map_err(Absent::Library)?;
    // SAFETY: the type is the header's.
    let create: Create = unsafe { library.function(c"CreateDXGIFactory1") }
        .ok_or_else(|| Absent::Library("dxgi.dll has no CreateDXGIFactory1".into()))?;
    // SAFETY: the interface's id and a place for the object.
    let factory = made("CreateDXGIFactory1", |answer| unsafe { create(&raw const FACTORY, answer) })
        .map_err(Absent::Failed)?;
    let mut adapters = Vec::new();
    for index in 0..ADAPTERS {
        // SAFETY: the factory lives.
        let object = made("EnumAdapters1", |answer| unsafe { Factory(factory).adapter(index, answer) });
        let Ok(object) = object else { break }; // not found: there are no more
        adapters.push(adapter(DxgiAdapter(object)).map_err(Absent::Failed)?);
    }
    Ok(adapters)
}

fn adapter(object: DxgiAdapter) -> Result<Adapter, Failed> {
    let mut d = Description {
        name: [0; 128],
        vendor: 0,
        device: 0,
        subsystem: 0,
        revision: 0,
        own_memory: 0,
        own_system_memory: 0,
        shared_memory: 0,
        luid: [0; 2],
        flags: 0,
    };
    let mut driver = 0;
    // SAFETY: both take an answer of the size that the header says.
    let has_driver = unsafe {
        checked("IDXGIAdapter1::GetDesc1", object.describe(&raw mut d))?;
        object.driver_version(&raw const DXGI_DEVICE, &raw mut driver) >= 0
    };
    let length = d.name.iter().position(|unit| *unit == 0).unwrap_or(d.name.len()); // what follows is not cleared
    Ok(Adapter {
        object: object.0,
        name: text(String::from_utf16_lossy(&d.name[..length]).as_bytes()),
        vendor: d.vendor,
        device: d.device,
        software: d.flags & SOFTWARE != 0,
        place: place(d.luid),
        driver: has_driver.then_some(driver),
        memory: d.own_memory as u64,
    })
}

/// `D3DKMT_OPENADAPTERFROMLUID`.
#[repr(C)]
struct OpenAdapter {
    luid: [u32; 2],
    handle: u32,
}

/// `D3DKMT_QUERYADAPTERINFO`.
#[repr(C)]
struct Query {
    handle: u32,
    kind: i32,
    answer: Raw,
    size: u32,
}

/// Where an adapter is on the bus. DXGI does not say it; the kernel's side of a display driver does, under Windows 8 and
/// later. `None` for renderers on the processor, and where it is not answered.
fn place(luid: [u32; 2]) -> Option<[u32; 3]> {
    type Open = unsafe extern "system" fn(*mut OpenAdapter) -> i32;
    type Ask = unsafe extern "system" fn(*mut Query) -> i32;
    type Close = unsafe extern "system" fn(*const u32) -> i32;
    let library = Library::open(&["gdi32.dll"]).ok()?;
    let mut adapter = OpenAdapter { luid, handle: 0 };
    let mut address = [u32::MAX; 3];
    // SAFETY: types and sizes are those of d3dkmthk.h; everything lives as long as the calls.
    let answer = unsafe {
        let open: Open = library.function(c"D3DKMTOpenAdapterFromLuid")?;
        let ask: Ask = library.function(c"D3DKMTQueryAdapterInfo")?;
        let close: Close = library.function(c"D3DKMTCloseAdapter")?;
        if open(&raw mut adapter) != 0 {
            return None;
        }
        let mut query =
            Query { handle: adapter.handle, kind: QUERY_ADDRESS, answer: ptr::null_mut(), size: 12 };
        query.answer = (&raw mut address).cast();
        let answer = ask(&raw mut query);
        close(&raw const adapter.handle);
        answer
    };
    let [bus, device, function] = address;
    (answer == 0 && bus <= 0xff && device < 32 && function < 8).then_some(address)
}

/// Whether this is Wine: its adapters are Wine's own translation, whatever card they name themselves after.
pub(crate) fn is_wine() -> bool {
    type Version = unsafe extern "C" fn() -> *const u8;
    let Ok(library) = Library::open(&["ntdll.dll"]) else { return false };
    // SAFETY: it is only looked up.
    unsafe { library.function::<Version>(c"wine_get_version") }.is_some()
}

// Sizes that a C compiler gives the structures of the headers.
const _: () = assert!(
    size_of::<OutputDescription>() == 96
        && size_of::<Description>() == 312
        && size_of::<OpenAdapter>() == 12
        && size_of::<Query>() == 24
);
