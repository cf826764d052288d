//! Direct3D 11: one picture, rendered on an adapter and read back. Types and numbers are those of d3d11.h.

use std::ptr;

use super::Library;
use super::com::{Code, Failed, Raw, checked, interface, made};
use super::d3d::{
    self, Absent, Element, FEATURE_LEVEL_11, FORMAT_DEPTH, FORMAT_PIXELS, Picture, STRIDE, TRIANGLES,
};
use super::dxgi::Adapter;

const SDK_VERSION: u32 = 7;
const USAGE_DEFAULT: u32 = 0;
const USAGE_STAGING: u32 = 3;
const BIND_VERTICES: u32 = 1;
const BIND_TARGET: u32 = 0x20;
const BIND_DEPTH: u32 = 0x40;
const CPU_READ: u32 = 0x2_0000;
const MAP_READ: u32 = 1;
const CLEAR_DEPTH: u32 = 1;

interface! {
    /// `ID3D11Device`.
    Device {
        3 buffer(description: *const BufferDescription, data: *const Data, answer: *mut Raw) -> Code;
        5 texture(description: *const TextureDescription, data: *const Data, answer: *mut Raw) -> Code;
        9 target_view(resource: Raw, description: Raw, answer: *mut Raw) -> Code;
        10 depth_view(resource: Raw, description: Raw, answer: *mut Raw) -> Code;
        11 input_layout(elements: *const Element, count: u32, code: *const u8, length: usize, answer: *mut Raw) -> Code;
        12 vertex_shader(code: *const u8, length: usize, linkage: Raw, answer: *mut Raw) -> Code;
        15 pixel_shader(code: *const u8, length: usize, linkage: Raw, answer: *mut Raw) -> Code;
        20 blend_state(description: *const BlendDescription, answer: *mut Raw) -> Code;
    }
}

interface! {
    /// `ID3D11DeviceContext`.
    Context {
        9 set_pixel_shader(shader: Raw, instances: Raw, count: u32);
        11 set_vertex_shader(shader: Raw, instances: Raw, count: u32);
        13 draw(count: u32, first: u32);
        14 map(resource: Raw, part: u32, kind: u32, flags: u32, answer: *mut Mapped) -> Code;
        17 set_layout(layout: Raw);
        18 set_vertices(first: u32, count: u32, buffers: *const Raw, strides: *const u32, offsets: *const u32);
        24 set_topology(topology: u32);
        33 set_targets(count: u32, views: *const Raw, depth: Raw);
        35 set_blending(state: Raw, factors: *const f32, samples: u32);
        44 set_viewports(count: u32, viewports: *const d3d::Viewport);
        47 copy(to: Raw, from: Raw);
        50 clear(view: Raw, color: *const f32);
        53 clear_depth(view: Raw, flags: u32, depth: f32, stencil: u8);
    }
}

#[repr(C)]
struct BufferDescription {
    bytes: u32,
    usage: u32,
    bind: u32,
    cpu: u32,
    more: u32,
    stride: u32,
}

#[repr(C)]
struct Data {
    start: *const f32,
    pitch: u32,
    slice: u32,
}

#[repr(C)]
struct TextureDescription {
    width: u32,
    height: u32,
    levels: u32,
    count: u32,
    format: u32,
    samples: [u32; 2],
    usage: u32,
    bind: u32,
    cpu: u32,
    more: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Blending {
    enabled: u32,
    color: [u32; 3],
    opacity: [u32; 3],
    mask: u8,
}

#[repr(C)]
struct BlendDescription {
    coverage: u32,
    independent: u32,
    targets: [Blending; 8],
}

#[repr(C)]
struct Mapped {
    start: *const u8,
    pitch: u32,
    slice: u32,
}

/// Renders `picture` and returns it, row by row.
pub(crate) fn render(adapter: &Adapter, picture: &Picture<'_>) -> Result<Vec<u8>, Absent> {
    let (device, context) = open(adapter)?;
    let target = texture(device, picture.size, FORMAT_PIXELS, BIND_TARGET)?;
    let depth = texture(device, picture.size, FORMAT_DEPTH, BIND_DEPTH)?;
    let no = ptr::null_mut();
    // SAFETY: the textures live and are made for these views.
    let (view, depth_view) = unsafe {
        (
            made("CreateRenderTargetView", |answer| device.target_view(target, no, answer))?,
            made("CreateDepthStencilView", |answer| device.depth_view(depth, no, answer))?,
        )
    };
    prepare(device, context, picture)?;
    let viewport = d3d::viewport(picture.size);
    // SAFETY: all objects and pointers live as long as the calls.
    unsafe {
        context.set_viewports(1, &raw const viewport);
        context.set_targets(1, &raw const view, depth_view);
        context.clear(view, picture.background.as_ptr());
        context.clear_depth(depth_view, CLEAR_DEPTH, 1.0, 0);
        context.draw(picture.vertices.len() as u32, 0);
    }
    Ok(read(device, context, target, picture.size)?)
}

fn open(adapter: &Adapter) -> Result<(Device, Context), Absent> {
    type Create = unsafe extern "system" fn(
        Raw,
        u32,
        Raw,
        u32,
        *const u32,
        u32,
        u32,
        *mut Raw,
        *mut u32,
        *mut Raw,
    ) -> Code;
    let library = Library::open(&["d3d11.dll"]).map_err(Absent::Library)?;
    let (level, mut context) = (FEATURE_LEVEL_11, ptr::null_mut());
    // SAFETY: the type is the header's. An adapter is given, so its kind is 0 and there is no software module.
    let device = unsafe {
        let create: Create = library
            .function(c"D3D11CreateDevice")
            .ok_or_else(|| Absent::Library("d3d11.dll has no D3D11CreateDevice".into()))?;
        made("D3D11CreateDevice", |answer| {
            let (levels, no) = (&raw const level, ptr::null_mut());
            let (version, got) = (SDK_VERSION, ptr::null_mut());
            create(adapter.object, 0, no, 0, levels, 1, version, answer, got, &raw mut context)
        })?
    };
    Ok((Device(device), Context(context)))
}

fn texture(device: Device, size: u32, format: u32, bind: u32) -> Result<Raw, Failed> {
    let staging = bind == 0;
    let description = TextureDescription {
        width: size,
        height: size,
        levels: 1,
        count: 1,
        format,
        samples: [1, 0],
        usage: if staging { USAGE_STAGING } else { USAGE_DEFAULT },
        bind,
        cpu: if staging { CPU_READ } else { 0 },
        more: 0,
    };
    // SAFETY: the description lives as long as the call; there is no first content.
    made("CreateTexture2D", |answer| unsafe { device.texture(&raw const description, ptr::null(), answer) })
}

/// Corners, shaders and blending.
fn prepare(device: Device, context: Context, picture: &Picture<'_>) -> Result<(), Failed> {
    let bytes = size_of_val(picture.vertices) as u32;
    let description =
        BufferDescription { bytes, usage: USAGE_DEFAULT, bind: BIND_VERTICES, cpu: 0, more: 0, stride: 0 };
    let data = Data { start: picture.vertices.as_ptr().cast(), pitch: 0, slice: 0 };
    let elements = d3d::elements();
    let target = Blending { enabled: 1, color: d3d::BLEND_COLOR, opacity: d3d::BLEND_OPACITY, mask: 0xf };
    let blending = BlendDescription { coverage: 0, independent: 0, targets: [target; 8] };
    let (vertex, pixel) = (picture.vertex_shader, picture.pixel_shader);
    let (no, offset) = (ptr::null_mut(), 0);
    // SAFETY: all objects and pointers live as long as the calls, lengths are those of the slices.
    unsafe {
        let buffer =
            made("CreateBuffer", |answer| device.buffer(&raw const description, &raw const data, answer))?;
        let layout = made("CreateInputLayout", |answer| {
            device.input_layout(elements.as_ptr(), 2, vertex.as_ptr(), vertex.len(), answer)
        })?;
        let vertex_shader = made("CreateVertexShader", |answer| {
            device.vertex_shader(vertex.as_ptr(), vertex.len(), no, answer)
        })?;
        let pixel_shader =
            made("CreatePixelShader", |answer| device.pixel_shader(pixel.as_ptr(), pixel.len(), no, answer))?;
        let blending = made("CreateBlendState", |answer| device.blend_state(&raw const blending, answer))?;
        context.set_vertices(0, 1, &raw const buffer, &STRIDE, &raw const offset);
        context.set_layout(layout);
        context.set_topology(TRIANGLES);
        context.set_vertex_shader(vertex_shader, no, 0);
        context.set_pixel_shader(pixel_shader, no, 0);
        context.set_blending(blending, ptr::null(), u32::MAX);
    }
    Ok(())
}

/// Copies the picture to where the processor can read it; that waits for the adapter.
fn read(device: Device, context: Context, target: Raw, size: u32) -> Result<Vec<u8>, Failed> {
    let staging = texture(device, size, FORMAT_PIXELS, 0)?;
    let mut mapped = Mapped { start: ptr::null(), pitch: 0, slice: 0 };
    // SAFETY: both textures have one size and format; what is mapped stays so until it is read.
    unsafe {
        context.copy(staging, target);
        checked("ID3D11DeviceContext::Map", context.map(staging, 0, MAP_READ, 0, &raw mut mapped))?;
        Ok(d3d::rows(mapped.start, mapped.pitch as usize, size))
    }
}

// Sizes that a C compiler gives the structures of the header.
const _: () = assert!(size_of::<BufferDescription>() == 24 && size_of::<TextureDescription>() == 44);
const _: () =
    assert!(size_of::<BlendDescription>() == 264 && size_of::<Mapped>() == 16 && size_of::<Data>() == 16);
