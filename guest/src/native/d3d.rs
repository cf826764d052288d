//! What Direct3D 11 and 12 share: the scene's buffers, numbers of their headers, and the compiler of shaders.

use std::ffi::{CStr, c_char};
use std::ptr;

use super::Library;
use super::com::{Code, Failed, Raw, interface};

/// What is drawn: a list of triangles over a background, with depth and blending, into a square of four bytes each pixel.
pub(crate) struct Picture<'a> {
    /// Width and height; a multiple of 64.
    pub(crate) size: u32,
    /// Place and colour of the corners.
    pub(crate) vertices: &'a [[f32; 8]],
    /// Colour where nothing is drawn.
    pub(crate) background: [f32; 4],
    /// The shaders as [`compile`] made them.
    pub(crate) vertex_shader: &'a [u8],
    /// See `vertex_shader`.
    pub(crate) pixel_shader: &'a [u8],
}

/// Why there is no picture.
pub(crate) enum Absent {
    /// Direct3D is not on this system.
    Library(String),
    /// A call failed.
    Failed(Failed),
}

impl From<Failed> for Absent {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// Formats (`DXGI_FORMAT_…`) of a corner's parts, the picture, and its depth.
pub(super) const FORMAT_FLOATS: u32 = 2;
pub(super) const FORMAT_PIXELS: u32 = 28;
pub(super) const FORMAT_DEPTH: u32 = 40;
pub(super) const FEATURE_LEVEL_11: u32 = 0xb000;
pub(super) const TRIANGLES: u32 = 4;

/// Blend factors and their operation: the source is laid over what is there by its opacity.
pub(super) const BLEND_COLOR: [u32; 3] = [5, 6, 1]; // source's opacity, the rest of it, added
pub(super) const BLEND_OPACITY: [u32; 3] = [2, 6, 1]; // one, the rest, added

/// Bytes of a corner, and of a pixel.
pub(super) const STRIDE: u32 = 32;
pub(super) const PIXEL: u32 = 4;

/// `D3D11_INPUT_ELEMENT_DESC`, which is the same in Direct3D 12.
#[repr(C)]
pub(super) struct Element {
    semantic: *const c_char,
    index: u32,
    format: u32,
    slot: u32,
    offset: u32,
    per_instance: u32,
    step: u32,
}

/// What a corner consists of, by the names that the shaders use.
pub(super) fn elements() -> [Element; 2] {
    let element = |name: &'static CStr, offset| Element {
        semantic: name.as_ptr(),
        index: 0,
        format: FORMAT_FLOATS,
        slot: 0,
        offset,
        per_instance: 0,
        step: 0,
    };
    [element(c"POSITION", 0), element(c"COLOR", 16)]
}

/// `D3D11_VIEWPORT`, which is the same in Direct3D 12: the whole picture, all depths.
#[repr(C)]
pub(super) struct Viewport {
    at: [f32; 2],
    size: [f32; 2],
    depth: [f32; 2],
}

pub(super) fn viewport(size: u32) -> Viewport {
    Viewport { at: [0.0; 2], size: [size as f32; 2], depth: [0.0, 1.0] }
}

/// Rows of a picture that lie `pitch` bytes apart, without the gaps.
///
/// # Safety
/// `size` rows of `size` pixels must be readable there.
pub(super) unsafe fn rows(start: *const u8, pitch: usize, size: u32) -> Vec<u8> {
    let length = (size * PIXEL) as usize;
    let mut picture = Vec::with_capacity(length * size as usize);
    for row in 0..size as usize {
        // SAFETY: the caller answers for it.
        picture.extend_from_slice(unsafe { std::slice::from_raw_parts(start.add(row * pitch), length) });
    }
    picture
}

interface! {
    /// `ID3DBlob`.
    pub(super) Blob {
        3 start() -> *const u8;
        4 length() -> usize;
    }
}

impl Blob {
    /// The bytes; none for no blob.
    ///
    /// # Safety
    /// The object must be a blob, or null.
    pub(super) unsafe fn bytes(self) -> Vec<u8> {
        if self.0.is_null() {
            return Vec::new();
        }
        // SAFETY: a blob says truly where its bytes are.
        unsafe { std::slice::from_raw_parts(self.start(), self.length()).to_vec() }
    }
}

/// Compiles the function `entry` of `source` for a kind of shader (`vs_5_0`); the error is the compiler's words.
pub(crate) fn compile(source: &str, entry: &CStr, kind: &CStr) -> Result<Vec<u8>, Problem> {
    type Compile = unsafe extern "system" fn(
        *const u8,
        usize,
        *const c_char,
        Raw,
        Raw,
        *const c_char,
        *const c_char,
        u32,
        u32,
        *mut Raw,
        *mut Raw,
    ) -> Code;
    let library = Library::open(&["d3dcompiler_47.dll"]).map_err(Problem::Library)?;
    let (mut code, mut words) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the type is the header's; texts end with NUL, the source is as long as said.
    unsafe {
        let compile: Compile = library
            .function(c"D3DCompile")
            .ok_or_else(|| Problem::Library("d3dcompiler_47.dll has no D3DCompile".into()))?;
        let answer = compile(
            source.as_ptr(),
            source.len(),
            c"scene".as_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            entry.as_ptr(),
            kind.as_ptr(),
            0,
            0,
            &raw mut code,
            &raw mut words,
        );
        if answer >= 0 && !code.is_null() {
            return Ok(Blob(code).bytes());
        }
        let words = String::from_utf8_lossy(&Blob(words).bytes()).replace(['\0', '\n'], " ");
        Err(Problem::Compile(format!("D3DCompile gives {:#010x}: {}", answer.cast_unsigned(), words.trim())))
    }
}

/// Why there is no shader.
pub(crate) enum Problem {
    /// The compiler is not on this system.
    Library(String),
    /// It does not compile.
    Compile(String),
}

// What the headers say.
const _: () = assert!(size_of::<Element>() == 32 && size_of::<Viewport>() == 24);
