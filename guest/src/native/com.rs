//! COM objects as far as Direct3D needs them: a pointer to a table of functions, which are called by their number.
//!
//! Objects are left to the end of the process, which follows at once.

use std::ffi::c_void;
use std::fmt;
use std::ptr;

/// Any object; null for none.
pub(super) type Raw = *mut c_void;

/// An HRESULT.
pub(super) type Code = i32;

/// A call that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    call: &'static str,
    code: Code,
}

/// The system has no such adapter, or the adapter no such interface.
const UNSUPPORTED: u32 = 0x887a_0004;

/// Names of the codes that say something about a card or driver (winerror.h).
const CODES: &[(u32, &str)] = &[
    (0x887a_0001, "DXGI_ERROR_INVALID_CALL"),
    (0x887a_0002, "DXGI_ERROR_NOT_FOUND"),
    (UNSUPPORTED, "DXGI_ERROR_UNSUPPORTED"),
    (0x887a_0005, "DXGI_ERROR_DEVICE_REMOVED"),
    (0x887a_0006, "DXGI_ERROR_DEVICE_HUNG"),
    (0x887a_0007, "DXGI_ERROR_DEVICE_RESET"),
    (0x887a_0020, "DXGI_ERROR_DRIVER_INTERNAL_ERROR"),
    (0x887a_002b, "DXGI_ERROR_ACCESS_DENIED"),
    (0x8000_4005, "E_FAIL"),
    (0x8007_000e, "E_OUTOFMEMORY"),
    (0x8007_0057, "E_INVALIDARG"),
];

impl Failed {
    /// A failure of `call` with the number `code`.
    pub(super) fn new(call: &'static str, code: Code) -> Self {
        Self { call, code }
    }

    /// Whether the system or the adapter just does not have it.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.code.cast_unsigned() == UNSUPPORTED
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.cast_unsigned();
        write!(f, "{} gives {code:#010x}", self.call)?;
        let name = CODES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name);
        name.map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// Result of `call`, which answers with a negative number for failure.
pub(super) fn checked(call: &'static str, code: Code) -> Result<(), Failed> {
    if code < 0 { Err(Failed { call, code }) } else { Ok(()) }
}

/// The object that `make` writes where it is told.
pub(super) fn made(call: &'static str, make: impl FnOnce(*mut Raw) -> Code) -> Result<Raw, Failed> {
    let mut object = ptr::null_mut();
    checked(call, make(&raw mut object))?;
    if object.is_null() { Err(Failed { call, code: 0 }) } else { Ok(object) }
}

/// An interface: a pointer, and the functions of its table that are called, each with its number there (the three of
/// `IUnknown` are 0 to 2).
macro_rules! interface {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($slot:literal $method:ident($($arg:ident: $type:ty),*) $(-> $answer:ty)?;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        $vis struct $name($vis $crate::native::com::Raw);

        impl $name {
            $(
                /// # Safety
                /// The object must have this interface; the arguments must be as its documentation says.
                unsafe fn $method(self, $($arg: $type),*) $(-> $answer)? {
                    type Method =
                        unsafe extern "system" fn($crate::native::com::Raw, $($type),*) $(-> $answer)?;
                    // SAFETY: an object begins with the pointer to its table; number and type are the header's.
                    unsafe {
                        let table = *self.0.cast::<*const $crate::native::com::Raw>();
                        let method: Method = std::mem::transmute(*table.add($slot));
                        method(self.0, $($arg),*)
                    }
                }
            )*
        }
    };
}
pub(super) use interface;
