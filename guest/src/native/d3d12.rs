//! Direct3D 12: one picture, rendered on an adapter and read back. Types and numbers are those of d3d12.h.

use std::mem::offset_of;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Foundation::{HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{CreateEventW, WaitForSingleObject};
use windows_sys::core::GUID;

use super::Library;
use super::com::{Code, Failed, Raw, checked, interface, made};
use super::d3d::{
    self, Absent, Blob, Element, FEATURE_LEVEL_11, FORMAT_DEPTH, FORMAT_PIXELS, PIXEL, Picture, STRIDE,
    TRIANGLES,
};
use super::dxgi::Adapter;

static DEVICE: GUID = GUID::from_u128(0x189819f1_1db6_4b57_be54_1821339b85f7);
static QUEUE: GUID = GUID::from_u128(0x0ec870a6_5d7e_4c22_8cfc_5baae07616ed);
static ALLOCATOR: GUID = GUID::from_u128(0x6102dee4_af59_4b09_b999_b44d73f09b24);
static LIST: GUID = GUID::from_u128(0x5b160d0f_ac1b_4185_8ba8_b3ae42a5a455);
static HEAP: GUID = GUID::from_u128(0x8efb471d_616c_4f49_90f7_127bb763fa51);
static RESOURCE: GUID = GUID::from_u128(0x696442be_a72e_4059_bc79_5b5c98040fad);
static FENCE: GUID = GUID::from_u128(0x0a753dcf_c4d8_4b91_adf6_be5a60d95a76);
static SIGNATURE: GUID = GUID::from_u128(0xc54a6b66_72df_4ee8_8be5_a946a1429214);
static PIPELINE: GUID = GUID::from_u128(0x765a30f3_f624_4c6f_a828_ace948622445);

/// Kinds of heaps: in the adapter's memory, for writing to it, for reading from it.
const HEAP_OWN: u32 = 1;
const HEAP_UPLOAD: u32 = 2;
const HEAP_READ_BACK: u32 = 3;

/// Kinds of heaps of descriptors.
const HEAP_TARGETS: u32 = 2;
const HEAP_DEPTHS: u32 = 3;

/// States of a resource.
const STATE_READABLE: u32 = 0xac3;
const STATE_TARGET: u32 = 0x4;
const STATE_DEPTH: u32 = 0x10;
const STATE_COPY_FROM: u32 = 0x800;
const STATE_COPY_TO: u32 = 0x400;

/// Flags of a texture.
const ALLOW_TARGET: u32 = 1;
const ALLOW_DEPTH: u32 = 2;

const CLEAR_DEPTH: u32 = 1;

/// How long the adapter may take, in milliseconds; a software renderer needs some.
const FENCE_LIMIT: u32 = 20_000;

interface! {
    /// `ID3D12Device`.
    Device {
        8 queue(description: *const [u32; 4], iid: *const GUID, answer: *mut Raw) -> Code;
        9 allocator(kind: u32, iid: *const GUID, answer: *mut Raw) -> Code;
        10 pipeline(description: *const Pipeline, iid: *const GUID, answer: *mut Raw) -> Code;
        12 list(node: u32, kind: u32, allocator: Raw, pipeline: Raw, iid: *const GUID, answer: *mut Raw) -> Code;
        14 heap(description: *const [u32; 4], iid: *const GUID, answer: *mut Raw) -> Code;
        16 signature(node: u32, bytes: *const u8, length: usize, iid: *const GUID, answer: *mut Raw) -> Code;
        20 target_view(resource: Raw, description: Raw, place: usize);
        21 depth_view(resource: Raw, description: Raw, place: usize);
        27 resource(heap: *const [u32; 5], flags: u32, description: *const Description, state: u32, clear: *const Clear, iid: *const GUID, answer: *mut Raw) -> Code;
        36 fence(value: u64, flags: u32, iid: *const GUID, answer: *mut Raw) -> Code;
        37 removed() -> Code;
    }
}

interface! {
    /// `ID3D12CommandQueue`.
    Queue {
        10 execute(count: u32, lists: *const Raw);
        14 signal(fence: Raw, value: u64) -> Code;
    }
}

interface! {
    /// `ID3D12GraphicsCommandList`.
    List {
        9 close() -> Code;
        12 draw(corners: u32, instances: u32, first: u32, first_instance: u32);
        16 copy(to: *const Place, x: u32, y: u32, z: u32, from: *const Place, part: Raw);
        20 set_topology(topology: u32);
        21 set_viewports(count: u32, viewports: *const d3d::Viewport);
        22 set_scissors(count: u32, rectangles: *const [i32; 4]);
        26 barrier(count: u32, barriers: *const Barrier);
        30 set_signature(signature: Raw);
        44 set_vertices(first: u32, count: u32, views: *const Vertices);
        46 set_targets(count: u32, views: *const usize, in_a_row: i32, depth: *const usize);
        47 clear_depth(view: usize, flags: u32, depth: f32, stencil: u8, count: u32, rectangles: Raw);
        48 clear(view: usize, color: *const f32, count: u32, rectangles: Raw);
    }
}

interface! {
    /// `ID3D12DescriptorHeap`. A structure is returned through a pointer, as C++ does.
    Heap {
        9 start(answer: *mut usize) -> *mut usize;
    }
}

interface! {
    /// `ID3D12Resource`.
    Resource {
        8 map(part: u32, read: *const [usize; 2], answer: *mut *mut u8) -> Code;
        9 unmap(part: u32, written: *const [usize; 2]);
        11 address() -> u64;
    }
}

interface! {
    /// `ID3D12Fence`.
    Fence {
        9 tell(value: u64, event: HANDLE) -> Code;
    }
}

/// `D3D12_RESOURCE_DESC`.
#[repr(C)]
struct Description {
    dimension: u32,
    alignment: u64,
    width: u64,
    height: u32,
    depth: u16,
    levels: u16,
    format: u32,
    samples: [u32; 2],
    layout: u32,
    flags: u32,
}

/// `D3D12_CLEAR_VALUE`: a colour, or a depth in its first number.
#[repr(C)]
struct Clear {
    format: u32,
    value: [f32; 4],
}

#[repr(C)]
struct Bytes {
    start: *const u8,
    length: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Blending {
    enabled: u32,
    logic: u32,
    color: [u32; 3],
    opacity: [u32; 3],
    operation: u32,
    mask: u8,
}

/// `D3D12_GRAPHICS_PIPELINE_STATE_DESC`; parts that are not used are numbers of their size.
#[repr(C)]
struct Pipeline {
    signature: Raw,
    vertex: Bytes,
    pixel: Bytes,
    other_shaders: [Bytes; 3],
    stream_output: [usize; 4],
    coverage: u32,
    independent: u32,
    blending: [Blending; 8],
    sample_mask: u32,
    fill: u32,
    cull: u32,
    counter_clockwise: u32,
    bias: [u32; 3],
    depth_clip: u32,
    smooth: [u32; 4],
    depth: u32,
    depth_write: u32,
    depth_test: u32,
    stencil: u32,
    stencil_masks: [u8; 2],
    stencil_sides: [[u32; 4]; 2],
    elements: *const Element,
    element_count: u64, // 32 bits, and a gap
    strip_cut: u32,
    topology: u32,
    target_count: u32,
    targets: [u32; 8],
    depth_format: u32,
    samples: [u32; 2],
    node: u32,
    cached: [usize; 2],
    flags: u32,
}

/// `D3D12_RESOURCE_BARRIER` for a change of state.
#[repr(C)]
struct Barrier {
    kind: u32,
    flags: u32,
    resource: Raw,
    part: u32,
    from: u32,
    to: u32,
}

/// `D3D12_TEXTURE_COPY_LOCATION`: a texture (kind 0), or a place in a buffer with a layout (kind 1).
#[repr(C)]
struct Place {
    resource: Raw,
    kind: u32,
    offset: u64,
    format: u32,
    size: [u32; 3],
    pitch: u32,
}

#[repr(C)]
struct Vertices {
    address: u64,
    bytes: u32,
    stride: u32,
}

/// `D3D12_ROOT_SIGNATURE_DESC`.
#[repr(C)]
struct Signature {
    parameters: u32,
    parameter_list: Raw,
    samplers: u32,
    sampler_list: Raw,
    flags: u32,
}

/// Renders `picture` and returns it, row by row.
pub(crate) fn render(adapter: &Adapter, picture: &Picture<'_>) -> Result<Vec<u8>, Absent> {
    let library = Library::open(&["d3d12.dll"]).map_err(Absent::Library)?;
    let device = open(&library, adapter)?;
    let signature = signature(&library, device)?;
    let done = draw(device, signature, picture);
    // SAFETY: the device lives.
    let removed = unsafe { device.removed() };
    Ok(done.map_err(|failed| if removed < 0 { Failed::new("ID3D12Device", removed) } else { failed })?)
}

fn open(library: &Library, adapter: &Adapter) -> Result<Device, Absent> {
    type Create = unsafe extern "system" fn(Raw, u32, *const GUID, *mut Raw) -> Code;
    // SAFETY: the type is the header's; the adapter lives.
    unsafe {
        let create: Create = library
            .function(c"D3D12CreateDevice")
            .ok_or_else(|| Absent::Library("d3d12.dll has no D3D12CreateDevice".into()))?;
        let device = made("D3D12CreateDevice", |answer| {
            create(adapter.object, FEATURE_LEVEL_11, &raw const DEVICE, answer)
        })?;
        Ok(Device(device))
    }
}

/// A root signature: nothing but corners goes into the shaders.
fn signature(library: &Library, device: Device) -> Result<Raw, Absent> {
    type Serialize = unsafe extern "system" fn(*const Signature, u32, *mut Raw, *mut Raw) -> Code;
    let no = ptr::null_mut();
    let description =
        Signature { parameters: 0, parameter_list: no, samplers: 0, sampler_list: no, flags: 1 };
    // SAFETY: the type is the header's; all pointers live as long as the calls.
    unsafe {
        let serialize: Serialize = library
            .function(c"D3D12SerializeRootSignature")
            .ok_or_else(|| Absent::Library("d3d12.dll has no D3D12SerializeRootSignature".into()))?;
        let blob = made("D3D12SerializeRootSignature", |answer| {
            serialize(&raw const description, 1, answer, ptr::null_mut())
        })?;
        let bytes = Blob(blob).bytes();
        Ok(made("CreateRootSignature", |answer| {
            device.signature(0, bytes.as_ptr(), bytes.len(), &raw const SIGNATURE, answer)
        })?)
    }
}

fn draw(device: Device, signature: Raw, picture: &Picture<'_>) -> Result<Vec<u8>, Failed> {
    let size = picture.size;
    let clear = Clear { format: FORMAT_PIXELS, value: picture.background };
    let far = Clear { format: FORMAT_DEPTH, value: [1.0, 0.0, 0.0, 0.0] };
    let target =
        resource(device, HEAP_OWN, &texture(size, FORMAT_PIXELS, ALLOW_TARGET), STATE_TARGET, Some(&clear))?;
    let depth =
        resource(device, HEAP_OWN, &texture(size, FORMAT_DEPTH, ALLOW_DEPTH), STATE_DEPTH, Some(&far))?;
    let corners = upload(device, picture.vertices)?;
    let answer = resource(device, HEAP_READ_BACK, &buffer(size * size * PIXEL), STATE_COPY_TO, None)?;
    let (targets, depths) = (heap(device, HEAP_TARGETS)?, heap(device, HEAP_DEPTHS)?);
    let pipeline = pipeline(device, signature, picture)?;
    let no = ptr::null_mut();
    // SAFETY: all objects live; the list is of the allocator's kind (0: everything).
    let (queue, list) = unsafe {
        device.target_view(target, no, targets);
        device.depth_view(depth, no, depths);
        let queue = made("CreateCommandQueue", |answer| {
            device.queue(&[0; 4], &raw const QUEUE, answer) // any kind of commands, ordinary
        })?;
        let allocator =
            made("CreateCommandAllocator", |answer| device.allocator(0, &raw const ALLOCATOR, answer))?;
        let list = made("CreateCommandList", |answer| {
            device.list(0, 0, allocator, pipeline, &raw const LIST, answer)
        })?;
        (Queue(queue), List(list))
    };
    record(list, signature, picture, (targets, depths), corners);
    read_back(list, target, answer, size)?;
    run(device, queue, list)?;
    let (mut start, all, none) = (ptr::null_mut(), [0, (size * size * PIXEL) as usize], [0; 2]);
    // SAFETY: the buffer has so many bytes, and the adapter has finished.
    unsafe {
        let answer = Resource(answer);
        checked("ID3D12Resource::Map", answer.map(0, &raw const all, &raw mut start))?;
        let rows = d3d::rows(start, (size * PIXEL) as usize, size);
        answer.unmap(0, &raw const none);
        Ok(rows)
    }
}

fn texture(size: u32, format: u32, flags: u32) -> Description {
    Description {
        dimension: 3,
        alignment: 0,
        width: size.into(),
        height: size,
        depth: 1,
        levels: 1,
        format,
        samples: [1, 0],
        layout: 0,
        flags,
    }
}

fn buffer(bytes: u32) -> Description {
    let plain = texture(1, 0, 0);
    Description { dimension: 1, width: bytes.into(), layout: 1, ..plain }
}

fn resource(
    device: Device,
    heap: u32,
    description: &Description,
    state: u32,
    clear: Option<&Clear>,
) -> Result<Raw, Failed> {
    let heap = [heap, 0, 0, 0, 0];
    let clear = clear.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: all pointers live as long as the call.
    made("CreateCommittedResource", |answer| unsafe {
        device.resource(&raw const heap, 0, description, state, clear, &raw const RESOURCE, answer)
    })
}

/// The corners in memory that the adapter reads.
fn upload(device: Device, corners: &[[f32; 8]]) -> Result<Vertices, Failed> {
    let bytes = size_of_val(corners);
    let object = Resource(resource(device, HEAP_UPLOAD, &buffer(bytes as u32), STATE_READABLE, None)?);
    let (mut start, nothing) = (ptr::null_mut::<u8>(), [0; 2]);
    // SAFETY: the buffer has so many bytes, and nothing else uses it yet.
    unsafe {
        checked("ID3D12Resource::Map", object.map(0, &raw const nothing, &raw mut start))?;
        ptr::copy_nonoverlapping(corners.as_ptr().cast::<u8>(), start, bytes);
        object.unmap(0, ptr::null());
        Ok(Vertices { address: object.address(), bytes: bytes as u32, stride: STRIDE })
    }
}

/// A heap for one descriptor, and the place of that.
fn heap(device: Device, kind: u32) -> Result<usize, Failed> {
    let description = [kind, 1, 0, 0];
    let mut start = 0;
    // SAFETY: description and answer live as long as the calls.
    unsafe {
        let heap = made("CreateDescriptorHeap", |answer| {
            device.heap(&raw const description, &raw const HEAP, answer)
        })?;
        Heap(heap).start(&raw mut start);
    }
    Ok(start)
}

fn pipeline(device: Device, signature: Raw, picture: &Picture<'_>) -> Result<Raw, Failed> {
    let bytes = |code: &[u8]| Bytes { start: code.as_ptr(), length: code.len() };
    let elements = d3d::elements();
    let blending = Blending {
        enabled: 1,
        logic: 0,
        color: d3d::BLEND_COLOR,
        opacity: d3d::BLEND_OPACITY,
        operation: 4, // none
        mask: 0xf,
    };
    const SIDE: [u32; 4] = [1, 1, 1, 8]; // keep, keep, keep, always
    let description = Pipeline {
        signature,
        vertex: bytes(picture.vertex_shader),
        pixel: bytes(picture.pixel_shader),
        other_shaders: [(); 3].map(|()| Bytes { start: ptr::null(), length: 0 }),
        stream_output: [0; 4],
        coverage: 0,
        independent: 0,
        blending: [blending; 8],
        sample_mask: u32::MAX,
        fill: 3, // solid
        cull: 3, // the back
        counter_clockwise: 0,
        bias: [0; 3],
        depth_clip: 1,
        smooth: [0; 4],
        depth: 1,
        depth_write: 1,
        depth_test: 2, // less
        stencil: 0,
        stencil_masks: [0xff; 2],
        stencil_sides: [SIDE; 2],
        elements: elements.as_ptr(),
        element_count: 2,
        strip_cut: 0,
        topology: 3, // triangles
        target_count: 1,
        targets: [FORMAT_PIXELS, 0, 0, 0, 0, 0, 0, 0],
        depth_format: FORMAT_DEPTH,
        samples: [1, 0],
        node: 0,
        cached: [0; 2],
        flags: 0,
    };
    // SAFETY: all pointers live as long as the call.
    made("CreateGraphicsPipelineState", |answer| unsafe {
        device.pipeline(&raw const description, &raw const PIPELINE, answer)
    })
}

/// Clears and draws.
fn record(
    list: List,
    signature: Raw,
    picture: &Picture<'_>,
    (target, depth): (usize, usize),
    corners: Vertices,
) {
    let viewport = d3d::viewport(picture.size);
    let whole = [0, 0, picture.size.cast_signed(), picture.size.cast_signed()];
    let no = ptr::null_mut();
    // SAFETY: the list is open; all objects and pointers live as long as the calls.
    unsafe {
        list.set_signature(signature);
        list.set_viewports(1, &raw const viewport);
        list.set_scissors(1, &raw const whole);
        list.set_targets(1, &raw const target, 0, &raw const depth);
        list.clear(target, picture.background.as_ptr(), 0, no);
        list.clear_depth(depth, CLEAR_DEPTH, 1.0, 0, 0, no);
        list.set_topology(TRIANGLES);
        list.set_vertices(0, 1, &raw const corners);
        list.draw(picture.vertices.len() as u32, 1, 0, 0);
    }
}

/// Copies the picture to where the processor can read it, and ends the list.
fn read_back(list: List, target: Raw, answer: Raw, size: u32) -> Result<(), Failed> {
    let barrier = Barrier {
        kind: 0, // a change of state
        flags: 0,
        resource: target,
        part: u32::MAX, // all
        from: STATE_TARGET,
        to: STATE_COPY_FROM,
    };
    let from = Place { resource: target, kind: 0, offset: 0, format: 0, size: [0; 3], pitch: 0 };
    let to = Place {
        resource: answer,
        kind: 1,
        offset: 0,
        format: FORMAT_PIXELS,
        size: [size, size, 1],
        pitch: size * PIXEL,
    };
    // SAFETY: the list is open; all objects and pointers live as long as the calls.
    unsafe {
        list.barrier(1, &raw const barrier);
        list.copy(&raw const to, 0, 0, 0, &raw const from, ptr::null_mut());
        checked("ID3D12GraphicsCommandList::Close", list.close())
    }
}

/// Lets the adapter do what the list says, and waits for the end.
fn run(device: Device, queue: Queue, list: List) -> Result<(), Failed> {
    // SAFETY: the event is ours alone and is closed by its owner; all objects live.
    unsafe {
        let fence = made("CreateFence", |answer| device.fence(0, 0, &raw const FENCE, answer))?;
        let event = CreateEventW(ptr::null(), 1, 0, ptr::null());
        if event.is_null() {
            return Err(Failed::new("CreateEventW", 0));
        }
        let event = OwnedHandle::from_raw_handle(event);
        checked("ID3D12Fence::SetEventOnCompletion", Fence(fence).tell(1, event.as_raw_handle()))?;
        queue.execute(1, &raw const list.0);
        checked("ID3D12CommandQueue::Signal", queue.signal(fence, 1))?;
        if WaitForSingleObject(event.as_raw_handle(), FENCE_LIMIT) != WAIT_OBJECT_0 {
            return Err(Failed::new("the adapter did not finish within 20 s; WaitForSingleObject", 0x102));
        }
    }
    Ok(())
}

// Sizes and places that a C compiler gives the structures of the header.
const _: () =
    assert!(size_of::<Pipeline>() == 656 && size_of::<Description>() == 56 && size_of::<Place>() == 48);
const _: () = assert!(size_of::<Barrier>() == 32 && size_of::<Clear>() == 20 && size_of::<Signature>() == 40);
const _: () = assert!(size_of::<Vertices>() == 16 && size_of::<Blending>() == 40);
const _: () = assert!(offset_of!(Pipeline, sample_mask) == 448 && offset_of!(Pipeline, depth) == 496);
const _: () = assert!(offset_of!(Pipeline, elements) == 552 && offset_of!(Pipeline, strip_cut) == 568);
const _: () = assert!(offset_of!(Pipeline, samples) == 616 && offset_of!(Pipeline, cached) == 632);
const _: () = assert!(offset_of!(Place, offset) == 16 && offset_of!(Description, samples) == 36);
