//! Calls into libraries that may not be there: drivers' libraries, loaded at run time, as safe functions.
//!
//! Nothing of it is linked, so the program starts on a guest without any of them. Types and numbers are those of the
//! interfaces' public headers, written down here by hand; each module names its source.

#[cfg(windows)]
pub(crate) mod com;
pub(crate) mod cuda;
#[cfg(windows)]
pub(crate) mod d3d;
#[cfg(windows)]
pub(crate) mod d3d11;
#[cfg(windows)]
pub(crate) mod d3d12;
#[cfg(windows)]
pub(crate) mod dxgi;
pub(crate) mod nvenc;
pub(crate) mod nvml;
pub(crate) mod optix;
#[cfg(windows)]
pub(crate) mod screen;
pub(crate) mod vulkan;

use std::ffi::CStr;

/// Why a part of the driver did not do its work.
pub(crate) enum Absent {
    /// No library.
    Library(String),
    /// The driver or the card cannot.
    Unable(String),
    /// A call failed.
    Call(String),
}

/// A library that stays loaded until the process ends: drivers' libraries have threads of their own.
pub(crate) struct Library(Handle);

#[cfg(unix)]
type Handle = *mut std::ffi::c_void;
#[cfg(windows)]
type Handle = crate::windows::api::machine::Library;

impl Library {
    /// The first of `names` that is there; the error is the system's words about the last one.
    pub(crate) fn open(names: &[&str]) -> Result<Self, String> {
        let mut reason = "no name to look for".to_owned();
        for name in names {
            match Self::load(name) {
                Ok(handle) => return Ok(Self(handle)),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    #[cfg(unix)]
    fn load(name: &str) -> Result<Handle, String> {
        let c_name = std::ffi::CString::new(name).map_err(|_| format!("no file is called {name:?}"))?;
        // SAFETY: the name ends with NUL. Constructors of the library run, as with any program that is linked with it.
        let handle = unsafe { libc::dlopen(c_name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !handle.is_null() {
            return Ok(handle);
        }
        // SAFETY: the text is valid until the next call in this thread.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return Err(format!("{name}: not there"));
        }
        // SAFETY: it ends with NUL.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    #[cfg(windows)]
    fn load(name: &str) -> Result<Handle, String> {
        Handle::open(name).map_err(|error| format!("{name}: {error}"))
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` must be the type of a pointer to that function.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &CStr) -> Option<F> {
        #[cfg(unix)]
        // SAFETY: the library is open, the name ends with NUL.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        #[cfg(windows)]
        let address =
            self.0.function(name).ok().flatten().map_or(std::ptr::null_mut(), |f| f as *mut std::ffi::c_void);
        // SAFETY: a function's address has the size of a pointer; the caller answers for the type.
        unsafe { as_function(address) }
    }
}

/// An address as a function pointer; `None` for null.
///
/// # Safety
/// `F` must be the type of a pointer to the function at that address.
pub(crate) unsafe fn as_function<F: Copy>(address: *mut std::ffi::c_void) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut std::ffi::c_void>()) };
    // SAFETY: the sizes are equal, the caller answers for the type.
    (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
}

/// Looks up functions; the error names the first that is missing.
pub(crate) fn look_up(
    names: &[&CStr],
    found: &mut [*mut std::ffi::c_void],
    get: &mut dyn FnMut(&CStr) -> *mut std::ffi::c_void,
) -> Result<(), String> {
    for (name, found) in names.iter().zip(found) {
        *found = get(name);
        if found.is_null() {
            return Err(format!("no function {}", name.to_string_lossy()));
        }
    }
    Ok(())
}

/// A table of functions of one interface: a structure, and its making from a look-up, by one code for all tables.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal: ($($arg:ty),*) $(-> $answer:ty)?;)* }) => {
        $(#[$doc])*
        #[repr(C)]
        struct $name { $($field: unsafe extern "system" fn($($arg),*) $(-> $answer)?,)* }

        impl $name {
            const NAMES: &[&std::ffi::CStr] = &[$($symbol),*];

            /// Looks every function up; the error names the one that is missing.
            ///
            /// # Safety
            /// `get` must give the address of the function of that name, or null.
            unsafe fn new(mut get: impl FnMut(&std::ffi::CStr) -> *mut std::ffi::c_void) -> Result<Self, String> {
                let mut all = [std::ptr::null_mut(); $name::NAMES.len()];
                $crate::native::look_up(Self::NAMES, &mut all, &mut get)?;
                // SAFETY: none is null, and the types in the table are those of the interface's header.
                Ok(unsafe { std::mem::transmute::<[*mut std::ffi::c_void; $name::NAMES.len()], Self>(all) })
            }
        }
    };
}
pub(crate) use functions;

/// Text in a fixed array up to its first NUL.
pub(crate) fn text(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
}
