//! The computer as a whole: its name, its end, its licence.

use std::ffi::{CStr, c_void};
use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_SHUTDOWN_IN_PROGRESS, FARPROC, GetLastError, HANDLE, HMODULE,
};
use windows_sys::Win32::Security::{
    AdjustTokenPrivileges, LUID_AND_ATTRIBUTES, LookupPrivilegeValueW, SE_PRIVILEGE_ENABLED,
    TOKEN_ADJUST_PRIVILEGES, TOKEN_PRIVILEGES, TOKEN_QUERY,
};
use windows_sys::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows_sys::Win32::System::Shutdown::{
    InitiateSystemShutdownExW, SHTDN_REASON_FLAG_PLANNED, SHTDN_REASON_MAJOR_OPERATINGSYSTEM,
    SHTDN_REASON_MINOR_INSTALLATION,
};
use windows_sys::Win32::System::SystemInformation::{ComputerNamePhysicalDnsHostname, SetComputerNameExW};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};
use windows_sys::core::GUID;

use super::{checked, error, wide};

/// Names the computer from the next restart on.
pub(crate) fn set_computer_name(name: &str) -> io::Result<()> {
    let name = wide(name);
    // SAFETY: the text ends with NUL.
    checked(unsafe { SetComputerNameExW(ComputerNamePhysicalDnsHostname, name.as_ptr()) })
}

/// Ends Windows now, programs or not, and starts it again or not.
pub(crate) fn end(restart: bool) -> io::Result<()> {
    enable_privilege("SeShutdownPrivilege")?;
    let reason =
        SHTDN_REASON_MAJOR_OPERATINGSYSTEM | SHTDN_REASON_MINOR_INSTALLATION | SHTDN_REASON_FLAG_PLANNED;
    // SAFETY: this machine, no message.
    let answer =
        unsafe { InitiateSystemShutdownExW(ptr::null(), ptr::null(), 0, 1, i32::from(restart), reason) };
    match checked(answer) {
        // an installer was first
        Err(error) if error.raw_os_error() == Some(ERROR_SHUTDOWN_IN_PROGRESS.cast_signed()) => Ok(()),
        answer => answer,
    }
}

/// Switches on a right that this process has but does not use by default.
pub(crate) fn enable_privilege(name: &str) -> io::Result<()> {
    let name = wide(name);
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the pseudo handle is always valid; `token` is closed below; texts end with NUL.
    unsafe {
        checked(OpenProcessToken(
            GetCurrentProcess(),
            TOKEN_ADJUST_PRIVILEGES | TOKEN_QUERY,
            &raw mut token,
        ))?;
        let mut wanted = TOKEN_PRIVILEGES {
            PrivilegeCount: 1,
            Privileges: [LUID_AND_ATTRIBUTES { Attributes: SE_PRIVILEGE_ENABLED, ..Default::default() }],
        };
        let found =
            checked(LookupPrivilegeValueW(ptr::null(), name.as_ptr(), &raw mut wanted.Privileges[0].Luid));
        let set = found.and_then(|()| {
            checked(AdjustTokenPrivileges(token, 0, &raw const wanted, 0, ptr::null_mut(), ptr::null_mut()))?;
            // It answers yes even if the process has no such right; only the error number tells.
            match GetLastError() {
                0 => Ok(()),
                code => Err(error(code)),
            }
        });
        CloseHandle(token);
        set
    }
}

/// A library of the system that not every Windows has; it stays loaded.
pub(crate) struct Library(HMODULE);

impl Library {
    /// Only from the system's own folder or by its whole path, never from beside this program.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let name = wide(name);
        // SAFETY: the text ends with NUL.
        let handle = unsafe { LoadLibraryExW(name.as_ptr(), ptr::null_mut(), LOAD_LIBRARY_SEARCH_SYSTEM32) };
        if handle.is_null() { Err(io::Error::last_os_error()) } else { Ok(Self(handle)) }
    }

    /// The address of a function; whoever calls it must know its type.
    pub(crate) fn function(&self, name: &CStr) -> io::Result<FARPROC> {
        // SAFETY: the name ends with NUL.
        let address = unsafe { GetProcAddress(self.0, name.as_ptr().cast()) };
        if address.is_none() { Err(io::Error::last_os_error()) } else { Ok(address) }
    }
}

type SlOpen = unsafe extern "system" fn(*mut *mut c_void) -> i32;
type SlClose = unsafe extern "system" fn(*mut c_void) -> i32;
type SlInstall =
    unsafe extern "system" fn(*mut c_void, *const u16, *const u16, u32, *const u8, *mut GUID) -> i32;

/// Installs a product key (`SLInstallProofOfPurchase` of slpublic.h). No program is started for it, so no argument
/// list shows the key. Not tried on a real Windows yet. The error is an HRESULT.
pub(crate) fn install_product_key(key: &str) -> io::Result<()> {
    let library = Library::open("slc.dll")?;
    let (open, close, install) = (
        library.function(c"SLOpen")?,
        library.function(c"SLClose")?,
        library.function(c"SLInstallProofOfPurchase")?,
    );
    let (algorithm, mut key) = (wide("msft:rm/algorithm/pkey/2009"), wide(key));
    let (mut handle, mut id) = (ptr::null_mut(), GUID::default());
    // SAFETY: the types are those of slpublic.h; texts end with NUL, no further data.
    let answer = unsafe {
        let open: SlOpen = std::mem::transmute(open);
        let close: SlClose = std::mem::transmute(close);
        let install: SlInstall = std::mem::transmute(install);
        match open(&raw mut handle) {
            0 => {
                let done = install(handle, algorithm.as_ptr(), key.as_ptr(), 0, ptr::null(), &raw mut id);
                close(handle);
                done
            }
            failed => failed,
        }
    };
    key.fill(0);
    if answer < 0 { Err(io::Error::from_raw_os_error(answer)) } else { Ok(()) }
}
