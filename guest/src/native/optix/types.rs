//! What OptiX's public header says: structures, numbers, and the table of functions.
//!
//! All of it is that of `optix_7_types.h` and `optix_function_table.h` of OptiX 7.2, whose interface has the number 41.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

pub(super) type Code = u32;
pub(super) type Object = *mut c_void;
pub(super) type Pointer = u64; // CUdeviceptr

/// `OPTIX_ABI_VERSION` of OptiX 7.2, and how many functions its table has.
pub(super) const INTERFACE: c_int = 41;
pub(super) const TABLE: usize = 38;

/// `OPTIX_ERROR_NOT_SUPPORTED` and `OPTIX_ERROR_UNSUPPORTED_ABI_VERSION`.
pub(super) const NOT_SUPPORTED: Code = 7800;
pub(super) const OTHER_INTERFACE: Code = 7801;

/// `OPTIX_COMPILE_DEBUG_LEVEL_NONE`.
pub(super) const NO_DEBUG: u32 = 0x2350;
/// `OPTIX_TRAVERSABLE_GRAPH_FLAG_ALLOW_SINGLE_GAS`: rays go through one geometry, without instances.
pub(super) const ONE_GEOMETRY: u32 = 1;
/// `OPTIX_PRIMITIVE_TYPE_FLAGS_TRIANGLE`.
pub(super) const ONLY_TRIANGLES: u32 = 1 << 31;
/// `OPTIX_PROGRAM_GROUP_KIND_RAYGEN`, `…_MISS` and `…_HITGROUP`.
pub(super) const KINDS: [u32; 3] = [0x2421, 0x2422, 0x2424];
/// `OPTIX_BUILD_OPERATION_BUILD`.
pub(super) const BUILD: u32 = 0x2161;
/// `OPTIX_BUILD_INPUT_TYPE_TRIANGLES`.
pub(super) const TRIANGLES: u32 = 0x2141;
/// `OPTIX_VERTEX_FORMAT_FLOAT3`, and the bytes of such a vertex.
pub(super) const FLOAT3: u32 = 0x2121;
pub(super) const VERTEX: usize = 12;
/// `OPTIX_GEOMETRY_FLAG_DISABLE_ANYHIT`: no program is asked whether a hit counts.
pub(super) const NO_ANY_HIT: u32 = 1;
/// `OPTIX_SBT_RECORD_HEADER_SIZE`; all of a record here, and a multiple of the 16 bytes to which records are aligned.
pub(super) const RECORD: usize = 32;

/// `OptixDeviceContextOptions`.
#[repr(C)]
pub(super) struct ContextOptions {
    pub(super) log: *mut c_void,
    pub(super) log_data: *mut c_void,
    pub(super) log_level: c_int,
    pub(super) validation: u32,
}

/// `OptixModuleCompileOptions`.
#[repr(C)]
pub(super) struct ModuleOptions {
    pub(super) registers: c_int,
    pub(super) optimisation: u32,
    pub(super) debug: u32,
    pub(super) bound: *const c_void,
    pub(super) bound_count: u32,
}

/// `OptixPipelineCompileOptions`.
#[repr(C)]
pub(super) struct PipelineOptions {
    pub(super) motion: c_int,
    pub(super) graph: u32,
    pub(super) payload: c_int,
    pub(super) attributes: c_int,
    pub(super) exceptions: u32,
    pub(super) parameters: *const c_char,
    pub(super) primitives: u32,
}

/// `OptixPipelineLinkOptions`.
#[repr(C)]
pub(super) struct LinkOptions {
    pub(super) depth: u32,
    pub(super) debug: u32,
}

/// `OptixProgramGroupDesc`: module and name of the group's program, and room for the two others that a group for hits may have.
#[repr(C)]
pub(super) struct Group {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) module: Object,
    pub(super) name: *const c_char,
    pub(super) others: [Object; 4],
}

/// `OptixAccelBuildOptions` with its `OptixMotionOptions`.
#[repr(C)]
pub(super) struct BuildOptions {
    pub(super) flags: u32,
    pub(super) operation: u32,
    pub(super) keys: u16,
    pub(super) motion: u16,
    pub(super) times: [f32; 2],
}

/// `OptixAccelBufferSizes`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Sizes {
    pub(super) output: usize,
    pub(super) temporary: usize,
    pub(super) update: usize,
}

/// `OptixBuildInput` with an `OptixBuildInputTriangleArray`.
#[repr(C)]
pub(super) struct Input {
    pub(super) kind: u32,
    pub(super) vertices: *const Pointer,
    pub(super) count: u32,
    pub(super) format: u32,
    pub(super) stride: u32,
    pub(super) indices: Pointer,
    pub(super) index_numbers: [u32; 3],
    pub(super) transform: Pointer,
    pub(super) flags: *const u32,
    pub(super) records: u32,
    pub(super) offsets: Pointer,
    pub(super) rest: [u32; 4],
    pub(super) union: [u64; 116],
}

/// `OptixShaderBindingTable`: addresses of records; of all but the first two their stride and number.
#[repr(C)]
#[derive(Default)]
pub(super) struct Records {
    pub(super) generation: Pointer,
    pub(super) exception: Pointer,
    pub(super) miss: Pointer,
    pub(super) miss_counts: [u32; 2],
    pub(super) hit: Pointer,
    pub(super) hit_counts: [u32; 2],
    pub(super) callable: Pointer,
    pub(super) callable_counts: [u32; 2],
}

// The sizes and places that a C compiler gives the structures of the header, for Linux and for Windows.
const _: () = {
    assert!(size_of::<ContextOptions>() == 24 && offset_of!(ContextOptions, log_level) == 16);
    assert!(size_of::<ModuleOptions>() == 32 && offset_of!(ModuleOptions, bound) == 16);
    assert!(size_of::<PipelineOptions>() == 40 && offset_of!(PipelineOptions, parameters) == 24);
    assert!(size_of::<LinkOptions>() == 8);
    assert!(size_of::<Group>() == 56 && offset_of!(Group, module) == 8);
    assert!(size_of::<BuildOptions>() == 20 && offset_of!(BuildOptions, times) == 12);
    assert!(size_of::<Sizes>() == 24);
    assert!(size_of::<Input>() == 1032 && offset_of!(Input, vertices) == 8);
    assert!(offset_of!(Input, indices) == 32 && offset_of!(Input, transform) == 56);
    assert!(offset_of!(Input, records) == 72 && offset_of!(Input, union) == 104);
    assert!(size_of::<Records>() == 64 && offset_of!(Records, hit) == 32);
};

/// The one function that the library has under its name.
pub(super) type Query =
    unsafe extern "system" fn(c_int, u32, *const u32, *const *const c_void, *mut Object, usize) -> Code;
pub(super) type ErrorName = unsafe extern "system" fn(Code) -> *const c_char;
pub(super) type MakeContext = unsafe extern "system" fn(Object, *const ContextOptions, *mut Object) -> Code;
pub(super) type SetCache = unsafe extern "system" fn(Object, c_int) -> Code;
pub(super) type MakeModule = unsafe extern "system" fn(
    Object,
    *const ModuleOptions,
    *const PipelineOptions,
    *const c_char,
    usize,
    *mut u8,
    *mut usize,
    *mut Object,
) -> Code;
pub(super) type MakeGroups = unsafe extern "system" fn(
    Object,
    *const Group,
    u32,
    *const c_int,
    *mut u8,
    *mut usize,
    *mut Object,
) -> Code;
pub(super) type MakePipeline = unsafe extern "system" fn(
    Object,
    *const PipelineOptions,
    *const LinkOptions,
    *const Object,
    u32,
    *mut u8,
    *mut usize,
    *mut Object,
) -> Code;
pub(super) type SayMemory =
    unsafe extern "system" fn(Object, *const BuildOptions, *const Input, u32, *mut Sizes) -> Code;
pub(super) type Build = unsafe extern "system" fn(
    Object,
    Object,
    *const BuildOptions,
    *const Input,
    u32,
    Pointer,
    usize,
    Pointer,
    usize,
    *mut u64,
    *const c_void,
    u32,
) -> Code;
pub(super) type PackHeader = unsafe extern "system" fn(Object, *mut u8) -> Code;
pub(super) type Launch =
    unsafe extern "system" fn(Object, Object, Pointer, usize, *const Records, u32, u32, u32) -> Code;

/// `OptixFunctionTable`: what is used of it, each at its place among the 38.
#[repr(C)]
pub(super) struct Functions {
    pub(super) error_name: ErrorName,
    _1: Object,
    pub(super) context: MakeContext,
    _3: [Object; 3],
    pub(super) cache: SetCache,
    _7: [Object; 5],
    pub(super) module: MakeModule,
    _13: [Object; 2],
    pub(super) groups: MakeGroups,
    _16: [Object; 2],
    pub(super) pipeline: MakePipeline,
    _19: [Object; 2],
    pub(super) sizes: SayMemory,
    pub(super) build: Build,
    _23: [Object; 5],
    pub(super) header: PackHeader,
    pub(super) launch: Launch,
    _30: [Object; 8],
}

/// The places that are used.
pub(super) const USED: &[usize] = &[0, 2, 6, 12, 15, 18, 21, 22, 28, 29];

const _: () = {
    const WORD: usize = size_of::<Object>();
    assert!(size_of::<Functions>() == TABLE * WORD && offset_of!(Functions, cache) == 6 * WORD);
    assert!(offset_of!(Functions, module) == 12 * WORD && offset_of!(Functions, groups) == 15 * WORD);
    assert!(offset_of!(Functions, pipeline) == 18 * WORD && offset_of!(Functions, sizes) == 21 * WORD);
    assert!(offset_of!(Functions, header) == 28 * WORD && offset_of!(Functions, launch) == 29 * WORD);
};
