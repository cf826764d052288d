//! CUDA by the driver API: devices, memory and launches. Types and numbers are those of `cuda.h`.
//!
//! Everything is left to the end of the process, except memory whose amount matters.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use super::{Library, functions, text};

const LIBRARY: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

type Code = c_uint;
type Device = c_int;
type Pointer = u64; // CUdeviceptr of a 64-bit program
type Object = *mut c_void;

/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: Code = 100;
/// `CUDA_ERROR_INVALID_DEVICE`: no device has that PCI address.
pub(crate) const INVALID_DEVICE: Code = 101;
const ATTRIBUTE_MAJOR: c_int = 75;
const ATTRIBUTE_MINOR: c_int = 76;

functions! {
    /// What is used of the driver API. Names with `_v2` are those that the header's macros stand for.
    Functions {
        init = c"cuInit": (c_uint) -> Code;
        error_name = c"cuGetErrorName": (Code, *mut *const c_char) -> Code;
        driver_version = c"cuDriverGetVersion": (*mut c_int) -> Code;
        by_address = c"cuDeviceGetByPCIBusId": (*mut Device, *const c_char) -> Code;
        name = c"cuDeviceGetName": (*mut c_char, c_int, Device) -> Code;
        total = c"cuDeviceTotalMem_v2": (*mut usize, Device) -> Code;
        attribute = c"cuDeviceGetAttribute": (*mut c_int, c_int, Device) -> Code;
        retain = c"cuDevicePrimaryCtxRetain": (*mut Object, Device) -> Code;
        set_current = c"cuCtxSetCurrent": (Object) -> Code;
        synchronize = c"cuCtxSynchronize": () -> Code;
        load = c"cuModuleLoadData": (*mut Object, *const c_void) -> Code;
        function = c"cuModuleGetFunction": (*mut Object, Object, *const c_char) -> Code;
        free_memory = c"cuMemGetInfo_v2": (*mut usize, *mut usize) -> Code;
        allocate = c"cuMemAlloc_v2": (*mut Pointer, usize) -> Code;
        free = c"cuMemFree_v2": (Pointer) -> Code;
        allocate_host = c"cuMemAllocHost_v2": (*mut *mut c_void, usize) -> Code;
        to_device = c"cuMemcpyHtoD_v2": (Pointer, *const c_void, usize) -> Code;
        to_host = c"cuMemcpyDtoH_v2": (*mut c_void, Pointer, usize) -> Code;
        launch = c"cuLaunchKernel": (Object, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Object, *mut *mut c_void, *mut *mut c_void) -> Code;
    }
}

/// A call that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    /// Number of the error, a `CUresult`; 0 if it is none of CUDA's.
    pub(crate) code: Code,
    /// A sentence with it.
    pub(crate) text: String,
}

/// Why CUDA cannot be used at all.
pub(crate) enum Absent {
    /// No library.
    Library(String),
    /// The library is there and does not start.
    Init(Failed),
}

/// The driver API, started.
pub(crate) struct Cuda(Functions);

/// A device with its context, current in this thread.
pub(crate) struct Context<'a> {
    f: &'a Functions,
    /// The `CUcontext`, for interfaces that work on it.
    pub(crate) object: *mut c_void,
    pub(crate) name: String,
    pub(crate) memory: u64,
    /// Compute capability, as 8.6.
    pub(crate) capability: (u32, u32),
    /// Newest CUDA that the driver serves, as 13000.
    pub(crate) driver: u32,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(Object);

/// Memory of the device.
pub(crate) struct Memory<'a> {
    f: &'a Functions,
    pointer: Pointer,
    bytes: usize,
}

impl Functions {
    fn checked(&self, what: &str, code: Code) -> Result<(), Failed> {
        if code == 0 {
            return Ok(());
        }
        let mut name = ptr::null();
        // SAFETY: it takes an answer, which is a constant text.
        let known = unsafe { (self.error_name)(code, &raw mut name) } == 0 && !name.is_null();
        // SAFETY: as above; it ends with NUL.
        let name = if known { unsafe { CStr::from_ptr(name) }.to_string_lossy() } else { "no name".into() };
        Err(Failed { code, text: format!("{what} gives {code} ({name})") })
    }
}

impl Cuda {
    pub(crate) fn load() -> Result<Self, Absent> {
        let library = Library::open(LIBRARY).map_err(Absent::Library)?;
        // SAFETY: addresses of that name, whatever their type, which the table knows.
        let get = |name: &CStr| unsafe { library.function::<*mut c_void>(name) }.unwrap_or(ptr::null_mut());
        // SAFETY: as above.
        let f = unsafe { Functions::new(get) }
            .map_err(|text| Absent::Library(format!("the library of CUDA has {text}")))?;
        // SAFETY: 0 is the only value of the flags.
        f.checked("cuInit", unsafe { (f.init)(0) }).map_err(Absent::Init)?;
        Ok(Self(f))
    }

    /// Opens the device at a PCI address (as `0000:01:00.0`).
    pub(crate) fn open(&self, address: &str) -> Result<Context<'_>, Failed> {
        let f = &self.0;
        let c_address = CString::new(address).unwrap_or_default();
        let (mut device, mut context, mut name, mut total) = (0, ptr::null_mut(), [0_u8; 256], 0);
        let (mut major, mut minor, mut driver) = (0, 0, 0);
        // SAFETY: all pointers live as long as the calls; the array is as long as said.
        unsafe {
            f.checked("cuDeviceGetByPCIBusId", (f.by_address)(&raw mut device, c_address.as_ptr()))?;
            f.checked("cuDeviceGetName", (f.name)(name.as_mut_ptr().cast(), 255, device))?;
            f.checked("cuDeviceTotalMem", (f.total)(&raw mut total, device))?;
            f.checked("cuDeviceGetAttribute", (f.attribute)(&raw mut major, ATTRIBUTE_MAJOR, device))?;
            f.checked("cuDeviceGetAttribute", (f.attribute)(&raw mut minor, ATTRIBUTE_MINOR, device))?;
            f.checked("cuDriverGetVersion", (f.driver_version)(&raw mut driver))?;
            f.checked("cuDevicePrimaryCtxRetain", (f.retain)(&raw mut context, device))?;
            f.checked("cuCtxSetCurrent", (f.set_current)(context))?;
        }
        Ok(Context {
            f,
            object: context,
            name: text(&name),
            memory: total as u64,
            capability: (major.unsigned_abs(), minor.unsigned_abs()),
            driver: driver.unsigned_abs(),
        })
    }
}

impl<'a> Context<'a> {
    /// Compiles a module for this device.
    pub(crate) fn module(&self, ptx: &CStr, kernels: &[&CStr]) -> Result<Vec<Kernel>, Failed> {
        let mut module = ptr::null_mut();
        // SAFETY: the text ends with NUL, as PTX must.
        let code = unsafe { (self.f.load)(&raw mut module, ptx.as_ptr().cast()) };
        self.f.checked("cuModuleLoadData", code)?;
        let one = |name: &&CStr| {
            let mut kernel = ptr::null_mut();
            // SAFETY: the module is loaded, the name ends with NUL.
            let code = unsafe { (self.f.function)(&raw mut kernel, module, name.as_ptr()) };
            self.f.checked("cuModuleGetFunction", code).map(|()| Kernel(kernel))
        };
        kernels.iter().map(one).collect()
    }

    /// Free memory in bytes.
    pub(crate) fn free(&self) -> Result<u64, Failed> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both take an answer.
        self.f.checked("cuMemGetInfo", unsafe { (self.f.free_memory)(&raw mut free, &raw mut total) })?;
        Ok(free as u64)
    }

    /// Takes memory of the device.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Memory<'a>, Failed> {
        let mut pointer = 0;
        // SAFETY: it takes an answer.
        let code = unsafe { (self.f.allocate)(&raw mut pointer, bytes) };
        self.f.checked(&format!("cuMemAlloc of {bytes} bytes"), code)?;
        Ok(Memory { f: self.f, pointer, bytes })
    }

    /// Words of the host's memory that the device reaches by itself; it stays until the process ends.
    pub(crate) fn host_words(&self, count: usize) -> Result<&'static mut [u32], Failed> {
        let mut place = ptr::null_mut();
        // SAFETY: it takes an answer.
        let code = unsafe { (self.f.allocate_host)(&raw mut place, count * 4) };
        self.f.checked("cuMemAllocHost", code)?;
        if place.is_null() || !place.cast::<u32>().is_aligned() {
            return Err(Failed { code: 0, text: "cuMemAllocHost gives no usable address".into() });
        }
        // SAFETY: it is that long, belongs to nobody else, and is set before it is read.
        unsafe {
            ptr::write_bytes(place.cast::<u32>(), 0, count);
            Ok(std::slice::from_raw_parts_mut(place.cast(), count))
        }
    }

    /// Runs a kernel over `words` of `memory` and waits for it. All kernels here take address, number of words and
    /// seed; some take a second address.
    pub(crate) fn run(
        &self,
        kernel: Kernel,
        memory: &Memory<'_>,
        seed: u32,
        more: Option<&Memory<'_>>,
    ) -> Result<(), Failed> {
        let (mut address, mut count, mut seed) = (memory.pointer, (memory.bytes / 4) as u64, seed);
        let mut second = more.map_or(0, |memory| memory.pointer);
        let mut arguments: [*mut c_void; 4] = [
            (&raw mut address).cast(),
            (&raw mut count).cast(),
            (&raw mut seed).cast(),
            (&raw mut second).cast(),
        ];
        let groups = count.div_ceil(256).clamp(1, 4096) as c_uint; // the kernels stride over the rest
        // SAFETY: the arguments are those of the kernel and live as long as the call, which copies them.
        let code = unsafe {
            (self.f.launch)(
                kernel.0,
                groups,
                1,
                1,
                256,
                1,
                1,
                0,
                ptr::null_mut(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.f.checked("cuLaunchKernel", code)?;
        self.wait()
    }

    /// Waits until the device has done all that it was given.
    pub(crate) fn wait(&self) -> Result<(), Failed> {
        // SAFETY: the context is current.
        self.f.checked("cuCtxSynchronize", unsafe { (self.f.synchronize)() })
    }
}

impl Memory<'_> {
    /// Where it is, for programs of the device.
    pub(crate) fn address(&self) -> Pointer {
        self.pointer
    }

    /// Copies `words` to it, which must fit.
    pub(crate) fn write<T: Word>(&self, words: &[T]) -> Result<(), Failed> {
        self.copy(words.as_ptr().cast_mut().cast(), size_of_val(words), true)
    }

    /// Copies its start to `words`.
    pub(crate) fn read<T: Word>(&self, words: &mut [T]) -> Result<(), Failed> {
        self.copy(words.as_mut_ptr().cast(), size_of_val(words), false)
    }

    /// One code for all kinds of words; what goes to the device is only read.
    fn copy(&self, words: *mut c_void, bytes: usize, to_device: bool) -> Result<(), Failed> {
        assert!(bytes <= self.bytes, "more than the memory holds");
        // SAFETY: both sides are that long.
        unsafe {
            if to_device {
                return self.f.checked("cuMemcpyHtoD", (self.f.to_device)(self.pointer, words, bytes));
            }
            self.f.checked("cuMemcpyDtoH", (self.f.to_host)(words, self.pointer, bytes))
        }
    }
}

/// Plain numbers.
pub(crate) trait Word: Copy {}
impl Word for u32 {}
impl Word for u64 {}
impl Word for f32 {}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: it was allocated once and is freed once. Who reads no result of it cannot be told of a failure.
        unsafe { (self.f.free)(self.pointer) };
    }
}
