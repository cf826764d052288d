//! The video encoder of NVIDIA's cards: one session on a CUDA context that makes single H.264 pictures.
//!
//! Structures, numbers and identifiers are those of `nvEncodeAPI.h` of the Video Codec SDK 11.0, which drivers from
//! 455.28 (Linux) and 456.71 (Windows) serve; later ones serve it too. Everything is left to the end of the process.

use std::ffi::{CStr, c_char, c_void};
use std::mem::offset_of;
use std::ptr;

use super::{Absent, Library, functions};

const LIBRARY: &[&str] =
    if cfg!(windows) { &["nvEncodeAPI64.dll"] } else { &["libnvidia-encode.so.1", "libnvidia-encode.so"] };

type Status = u32;
type Object = *mut c_void;
type Call<T> = unsafe extern "system" fn(Object, *mut T) -> Status;

/// Version of the interface that is spoken: 11.0, as sessions are told and as the library counts.
const INTERFACE: u32 = 11;
const INTERFACE_COUNTED: u32 = 11 << 4;

/// `version` of a structure: of the structure itself, of the interface, and a mark.
const fn version(structure: u32) -> u32 {
    INTERFACE | structure << 16 | 7 << 28
}

/// The same for structures that are marked as extended.
const fn extended(structure: u32) -> u32 {
    version(structure) | 1 << 31
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

/// `NV_ENC_CODEC_H264_GUID`.
const H264: Guid = Guid(0x6bc8_2762, 0x4e63, 0x4ca4, [0xaa, 0x85, 0x1e, 0x50, 0xf3, 0x21, 0xf6, 0xbf]);
/// `NV_ENC_PRESET_P3_GUID`.
const PRESET: Guid = Guid(0x3685_0110, 0x3a07, 0x441f, [0x94, 0xd5, 0x36, 0x70, 0x63, 0x1f, 0x91, 0xf6]);
/// `NV_ENC_TUNING_INFO_LOW_LATENCY`: no picture waits for a later one.
const LOW_LATENCY: u32 = 2;
/// `NV_ENC_DEVICE_TYPE_CUDA`.
const DEVICE_CUDA: u32 = 1;
/// `NV_ENC_BUFFER_FORMAT_NV12`.
const NV12: u32 = 1;
/// `NV_ENC_PIC_STRUCT_FRAME`.
const WHOLE_FRAME: u32 = 1;
/// `NV_ENC_PIC_FLAG_FORCEIDR` and `NV_ENC_PIC_FLAG_OUTPUT_SPSPPS`: a picture that stands for itself.
const ALONE: u32 = 2 | 4;

/// What the quantiser is set to, of 0 to 51; its step is 10 levels of brightness then.
const QUANTISER: u32 = 24;

/// Most bytes that are taken of a picture.
const MOST: u32 = 4 << 20;

/// `NV_ENC_OPEN_ENCODE_SESSION_EX_PARAMS`.
#[repr(C)]
struct Session {
    version: u32,
    device_type: u32,
    device: Object,
    reserved: Object,
    interface: u32,
    rest: [u32; 253],
    rest2: [Object; 64],
}

/// `NV_ENC_CONFIG`, with the start of the `NV_ENC_RC_PARAMS` in it; the driver fills it for a preset.
#[repr(C)]
struct Settings {
    version: u32,
    profile: Guid,
    group_length: u32,
    interval: i32,
    monochrome: u32,
    fields: u32,
    precision: u32,
    rate_version: u32,
    rate_mode: u32,
    quantisers: [u32; 3], // of P, B and intra pictures
    rest: [u32; 369],
    rest2: [Object; 256],
}

/// `NV_ENC_PRESET_CONFIG`.
#[repr(C)]
struct Preset {
    version: u32,
    settings: Settings,
    rest: [u32; 255],
    rest2: [Object; 64],
}

/// `NV_ENC_INITIALIZE_PARAMS`.
#[repr(C)]
struct Start {
    version: u32,
    codec: Guid,
    preset: Guid,
    width: u32,
    height: u32,
    shown_width: u32,
    shown_height: u32,
    rate: u32,
    per: u32,
    asynchronous: u32,
    decides_kinds: u32,
    flags: u32,
    private_size: u32,
    private: Object,
    settings: *mut Settings,
    most_width: u32,
    most_height: u32,
    hints: [u32; 8],
    tuning: u32,
    rest: [u32; 288],
    rest2: [Object; 64],
}

/// `NV_ENC_CREATE_INPUT_BUFFER`.
#[repr(C)]
struct MakeInput {
    version: u32,
    width: u32,
    height: u32,
    heap: u32,
    format: u32,
    reserved: u32,
    buffer: Object,
    rest: [Object; 93],
}

/// `NV_ENC_CREATE_BITSTREAM_BUFFER`.
#[repr(C)]
struct MakeOutput {
    version: u32,
    size: u32,
    heap: u32,
    reserved: u32,
    buffer: Object,
    rest: [Object; 94],
}

/// `NV_ENC_LOCK_INPUT_BUFFER`.
#[repr(C)]
struct LockInput {
    version: u32,
    flags: u32,
    buffer: Object,
    place: *mut u8,
    pitch: u32,
    rest: [u32; 251],
    rest2: [Object; 64],
}

/// `NV_ENC_LOCK_BITSTREAM`.
#[repr(C)]
struct LockOutput {
    version: u32,
    flags: u32,
    buffer: Object,
    slice_offsets: *mut u32,
    frame: u32,
    state: u32,
    slices: u32,
    size: u32,
    time: u64,
    duration: u64,
    place: *const u8,
    kind: u32,
    rest: [u32; 241],
    rest2: [Object; 64],
}

/// `NV_ENC_PIC_PARAMS`.
#[repr(C)]
struct Encode {
    version: u32,
    width: u32,
    height: u32,
    pitch: u32,
    flags: u32,
    frame: u32,
    time: u64,
    duration: u64,
    input: Object,
    output: Object,
    event: Object,
    format: u32,
    structure: u32,
    kind: u32,
    rest: [u32; 817],
}

/// `NV_ENCODE_API_FUNCTION_LIST`: addresses of functions, in this order.
#[repr(C)]
struct List {
    version: u32,
    reserved: u32,
    places: [*mut c_void; 318],
}

// The sizes and places that a C compiler gives the structures of the header, for Linux and for Windows.
const _: () = {
    assert!(size_of::<Session>() == 1552 && offset_of!(Session, interface) == 24);
    assert!(size_of::<Settings>() == 3584 && offset_of!(Settings, quantisers) == 48);
    assert!(offset_of!(Settings, rate_mode) == 44 && offset_of!(Settings, interval) == 24);
    assert!(size_of::<Preset>() == 5128 && offset_of!(Preset, settings) == 8);
    assert!(size_of::<Start>() == 1808 && offset_of!(Start, width) == 36);
    assert!(offset_of!(Start, settings) == 88 && offset_of!(Start, tuning) == 136);
    assert!(size_of::<MakeInput>() == 776 && offset_of!(MakeInput, buffer) == 24);
    assert!(size_of::<MakeOutput>() == 776 && offset_of!(MakeOutput, buffer) == 16);
    assert!(size_of::<LockInput>() == 1544 && offset_of!(LockInput, pitch) == 24);
    assert!(size_of::<LockOutput>() == 1544 && offset_of!(LockOutput, size) == 36);
    assert!(offset_of!(LockOutput, place) == 56 && offset_of!(LockOutput, kind) == 64);
    assert!(size_of::<Encode>() == 3344 && offset_of!(Encode, input) == 40);
    assert!(offset_of!(Encode, format) == 64 && offset_of!(Encode, kind) == 72);
    assert!(size_of::<List>() == 2552 && offset_of!(List, places) == 8);
};

/// A structure of the interface: all of it zero but its version, which comes first.
///
/// # Safety
/// `T` must begin with that version and be made of numbers and pointers.
unsafe fn blank<T>(version: u32) -> Box<T> {
    // SAFETY: zero is a value of all of these.
    let mut blank: Box<T> = Box::new(unsafe { std::mem::zeroed() });
    // SAFETY: the first four bytes are the version.
    unsafe { ptr::from_mut(&mut *blank).cast::<u32>().write(version) };
    blank
}

functions! {
    /// The two functions that the library has under their names.
    Entries {
        newest = c"NvEncodeAPIGetMaxSupportedVersion": (*mut u32) -> Status;
        list = c"NvEncodeAPICreateInstance": (*mut List) -> Status;
    }
}

functions! {
    /// What is used of the list that it fills.
    Functions {
        start = c"nvEncInitializeEncoder": (Object, *mut Start) -> Status;
        make_input = c"nvEncCreateInputBuffer": (Object, *mut MakeInput) -> Status;
        make_output = c"nvEncCreateBitstreamBuffer": (Object, *mut MakeOutput) -> Status;
        encode = c"nvEncEncodePicture": (Object, *mut Encode) -> Status;
        lock_output = c"nvEncLockBitstream": (Object, *mut LockOutput) -> Status;
        unlock_output = c"nvEncUnlockBitstream": (Object, Object) -> Status;
        lock_input = c"nvEncLockInputBuffer": (Object, *mut LockInput) -> Status;
        unlock_input = c"nvEncUnlockInputBuffer": (Object, Object) -> Status;
        open = c"nvEncOpenEncodeSessionEx": (*mut Session, *mut Object) -> Status;
        last_error = c"nvEncGetLastErrorString": (Object) -> *const c_char;
        preset = c"nvEncGetEncodePresetConfigEx": (Object, Guid, Guid, u32, *mut Preset) -> Status;
    }
}

/// Where each of them is in the list.
const PLACES: &[(&CStr, usize)] = &[
    (c"nvEncInitializeEncoder", 11),
    (c"nvEncCreateInputBuffer", 12),
    (c"nvEncCreateBitstreamBuffer", 14),
    (c"nvEncEncodePicture", 16),
    (c"nvEncLockBitstream", 17),
    (c"nvEncUnlockBitstream", 18),
    (c"nvEncLockInputBuffer", 19),
    (c"nvEncUnlockInputBuffer", 20),
    (c"nvEncOpenEncodeSessionEx", 29),
    (c"nvEncGetLastErrorString", 37),
    (c"nvEncGetEncodePresetConfigEx", 39),
];

/// Words for the numbers that a guest may meet.
const STATUS: &[(Status, &str)] = &[
    (1, "no device that encodes"),
    (2, "the device is not supported"),
    (4, "invalid device"),
    (8, "invalid parameter"),
    (10, "out of memory, or as many sessions as the card may have"),
    (12, "unsupported parameter"),
    (15, "invalid version"),
    (17, "more input is needed"),
    (18, "the encoder is busy"),
    (20, "generic error"),
    (21, "incompatible client key"),
];

/// A session that makes pictures of one size.
pub(crate) struct Encoder {
    f: Functions,
    session: Object,
    width: u32,
    height: u32,
    input: Object,
    output: Object,
    frames: u32,
}

impl Functions {
    fn load() -> Result<Self, Absent> {
        let library = Library::open(LIBRARY).map_err(Absent::Library)?;
        // SAFETY: addresses of that name, whatever their type, which the table knows.
        let get = |name: &CStr| unsafe { library.function::<*mut c_void>(name) }.unwrap_or(ptr::null_mut());
        // SAFETY: as above.
        let entries = unsafe { Entries::new(get) }
            .map_err(|text| Absent::Library(format!("the encoder's library has {text}")))?;
        let mut newest = 0;
        // SAFETY: it takes an answer.
        checked("NvEncodeAPIGetMaxSupportedVersion", unsafe { (entries.newest)(&raw mut newest) })?;
        if newest < INTERFACE_COUNTED {
            return Err(Absent::Unable(format!(
                "this driver's encoder serves version {}.{} of its interface; 11.0 is spoken here, which drivers \
                 from 455.28 (Linux) and 456.71 (Windows) have",
                newest >> 4,
                newest & 15
            )));
        }
        // SAFETY: it begins with its version, the rest are pointers.
        let mut list: Box<List> = unsafe { blank(version(2)) };
        // SAFETY: it fills the list, which is as long as its version says.
        checked("NvEncodeAPICreateInstance", unsafe { (entries.list)(&raw mut *list) })?;
        let place = |name: &CStr| PLACES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place);
        let get = |name: &CStr| place(name).map_or(ptr::null_mut(), |place| list.places[place]);
        // SAFETY: the table says where the header has each function.
        unsafe { Self::new(get) }.map_err(|text| Absent::Call(format!("the encoder's list has {text}")))
    }
}

#[inline(never)] // it is called often and seldom has anything to say
fn checked(what: &str, status: Status) -> Result<(), Absent> {
    if status == 0 {
        return Ok(());
    }
    let words =
        STATUS.iter().find(|(number, _)| *number == status).map_or("no word for it", |(_, word)| *word);
    let text = format!("{what} gives {status} ({words})");
    Err(if matches!(status, 1 | 2) { Absent::Unable(text) } else { Absent::Call(text) })
}

impl Encoder {
    /// Opens a session on a CUDA context, which must be current and stay so.
    pub(crate) fn open(context: Object, width: u32, height: u32) -> Result<Self, Absent> {
        let f = Functions::load()?;
        // SAFETY: here and below the structures begin with their versions and have the header's layout, asserted above.
        let mut parameters: Box<Session> = unsafe { blank(version(1)) };
        (parameters.device_type, parameters.device, parameters.interface) = (DEVICE_CUDA, context, INTERFACE);
        let mut session = ptr::null_mut();
        // SAFETY: both live as long as the call.
        let status = unsafe { (f.open)(&raw mut *parameters, &raw mut session) };
        checked("nvEncOpenEncodeSessionEx", status)?;
        let mut this =
            Self { f, session, width, height, input: ptr::null_mut(), output: ptr::null_mut(), frames: 0 };
        this.start()?;
        // SAFETY: as above.
        let mut input: Box<MakeInput> = unsafe { blank(version(1)) };
        (input.width, input.height, input.format) = (width, height, NV12);
        this.call("nvEncCreateInputBuffer", this.f.make_input, &mut *input)?;
        // SAFETY: as above.
        let mut output: Box<MakeOutput> = unsafe { blank(version(1)) };
        this.call("nvEncCreateBitstreamBuffer", this.f.make_output, &mut *output)?;
        (this.input, this.output) = (input.buffer, output.buffer);
        Ok(this)
    }

    /// Sets the session up, with what the driver has for the preset but for the quantiser.
    fn start(&self) -> Result<(), Absent> {
        // SAFETY: as in `open`.
        let (mut preset, mut start) = unsafe { (blank::<Preset>(extended(4)), blank::<Start>(extended(5))) };
        preset.settings.version = extended(7);
        // SAFETY: the structure is as long as its versions say and lives as long as the call.
        let status = unsafe { (self.f.preset)(self.session, H264, PRESET, LOW_LATENCY, &raw mut *preset) };
        self.checked("nvEncGetEncodePresetConfigEx", status)?;
        let settings = &mut preset.settings;
        settings.interval = 1; // no picture between others
        (settings.rate_mode, settings.quantisers) = (0, [QUANTISER; 3]);
        (start.codec, start.preset, start.tuning) = (H264, PRESET, LOW_LATENCY);
        (start.width, start.height) = (self.width, self.height);
        (start.shown_width, start.shown_height) = (self.width, self.height);
        (start.rate, start.per, start.decides_kinds) = (30, 1, 1);
        start.settings = settings;
        self.call("nvEncInitializeEncoder", self.f.start, &mut *start)
    }

    /// As [`checked`], with what the session says about it.
    fn checked(&self, what: &str, status: Status) -> Result<(), Absent> {
        let Err(Absent::Call(text)) = checked(what, status) else { return Ok(()) };
        // SAFETY: the session is open; the answer is a text of the library's or null.
        let said = unsafe { (self.f.last_error)(self.session) };
        if said.is_null() {
            return Err(Absent::Call(text));
        }
        // SAFETY: it ends with NUL.
        let said = unsafe { CStr::from_ptr(said) }.to_string_lossy();
        Err(Absent::Call(if said.is_empty() { text } else { format!("{text}: {}", said.trim()) }))
    }

    /// Calls a function of the session with its structure.
    fn call<T>(&self, what: &str, function: Call<T>, parameters: &mut T) -> Result<(), Absent> {
        // SAFETY: the structure has the header's layout and lives as long as the call.
        self.checked(what, unsafe { function(self.session, parameters) })
    }

    /// Makes a picture of brightness values, a row after the other, without colour; it waits for it.
    pub(crate) fn encode(&mut self, brightness: &[u8]) -> Result<Vec<u8>, Absent> {
        let pitch = self.fill(brightness)?;
        // SAFETY: as in `open`.
        let mut encode: Box<Encode> = unsafe { blank(extended(4)) };
        (encode.width, encode.height, encode.pitch) = (self.width, self.height, pitch);
        (encode.flags, encode.frame, encode.time) = (ALONE, self.frames, u64::from(self.frames));
        (encode.input, encode.output) = (self.input, self.output);
        (encode.format, encode.structure) = (NV12, WHOLE_FRAME);
        self.frames += 1;
        self.call("nvEncEncodePicture", self.f.encode, &mut *encode)?;
        // SAFETY: as in `open`.
        let mut lock: Box<LockOutput> = unsafe { blank(version(1)) };
        lock.buffer = self.output;
        self.call("nvEncLockBitstream", self.f.lock_output, &mut *lock)?;
        if lock.place.is_null() || lock.size > MOST {
            return Err(Absent::Call(format!("nvEncLockBitstream gives no usable {} bytes", lock.size)));
        }
        // SAFETY: the library says that so many bytes are there until it is unlocked.
        let bytes = unsafe { std::slice::from_raw_parts(lock.place, lock.size as usize) }.to_vec();
        // SAFETY: it was locked above.
        let status = unsafe { (self.f.unlock_output)(self.session, self.output) };
        self.checked("nvEncUnlockBitstream", status).map(|()| bytes)
    }

    /// Writes a picture to the encoder's own memory; the answer is the length of a row there.
    fn fill(&self, brightness: &[u8]) -> Result<u32, Absent> {
        let (width, height) = (self.width as usize, self.height as usize);
        assert_eq!(brightness.len(), width * height, "a picture of the session's size");
        // SAFETY: as in `open`.
        let mut lock: Box<LockInput> = unsafe { blank(version(1)) };
        lock.buffer = self.input;
        self.call("nvEncLockInputBuffer", self.f.lock_input, &mut *lock)?;
        if lock.place.is_null() || lock.pitch < self.width {
            return Err(Absent::Call(format!("nvEncLockInputBuffer gives rows of {} bytes", lock.pitch)));
        }
        let pitch = lock.pitch as usize;
        // SAFETY: NV12 has a row of brightness per row of the picture, `pitch` bytes apart, then half as many rows of
        // colour, each as long, where 128 is none.
        unsafe {
            for (n, row) in brightness.chunks_exact(width).enumerate() {
                ptr::copy_nonoverlapping(row.as_ptr(), lock.place.add(n * pitch), width);
            }
            for n in height..height + height / 2 {
                ptr::write_bytes(lock.place.add(n * pitch), 128, width);
            }
        }
        // SAFETY: it was locked above.
        let status = unsafe { (self.f.unlock_input)(self.session, self.input) };
        self.checked("nvEncUnlockInputBuffer", status).map(|()| lock.pitch)
    }
}
