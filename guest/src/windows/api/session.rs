//! Sessions: which one this process is in, and who is logged on at the console. `wtsapi32.dll` is loaded when it is asked.

use std::ffi::c_void;
use std::ptr;

use super::machine::Library;
use crate::native::functions;

functions! {
    /// Of kernel32.dll.
    Kernel {
        of_process = c"ProcessIdToSessionId": (u32, *mut u32) -> i32;
        console = c"WTSGetActiveConsoleSessionId": () -> u32;
    }
}

functions! {
    /// Of wtsapi32.dll.
    Terminal {
        query = c"WTSQuerySessionInformationW": (*mut c_void, u32, i32, *mut *mut u16, *mut u32) -> i32;
        free = c"WTSFreeMemory": (*mut c_void);
    }
}

/// `WTSUserName`, `WTSDomainName`.
const USER_NAME: i32 = 5;
const DOMAIN_NAME: i32 = 7;
/// Nobody is at the console, and nobody can be: the session is just being changed.
const NONE: u32 = u32::MAX;

fn kernel() -> Option<Kernel> {
    let library = Library::open("kernel32.dll").ok()?;
    // SAFETY: the addresses are those of the library's functions of these names.
    unsafe { Kernel::new(|name| address(&library, name)) }.ok()
}

fn address(library: &Library, name: &std::ffi::CStr) -> *mut c_void {
    library.function(name).ok().flatten().map_or(ptr::null_mut(), |address| address as *mut c_void)
}

/// Whether this process is in the session of services, which has no desktop that anybody sees. Unknown counts as no.
pub(crate) fn is_services() -> bool {
    let mut session = NONE;
    let Some(kernel) = kernel() else { return false };
    // SAFETY: the number takes the answer.
    unsafe { (kernel.of_process)(std::process::id(), &raw mut session) != 0 && session == 0 }
}

/// Who is logged on at the console, as `COMPUTER\name`; `None` if nobody is.
pub(crate) fn console_user() -> Option<String> {
    // SAFETY: it takes nothing.
    let session = unsafe { (kernel()?.console)() };
    if session == NONE {
        return None;
    }
    let library = Library::open("wtsapi32.dll").ok()?;
    // SAFETY: the addresses are those of the library's functions of these names.
    let terminal = unsafe { Terminal::new(|name| address(&library, name)) }.ok()?;
    let user = text(&terminal, session, USER_NAME).filter(|user| !user.is_empty())?;
    let domain = text(&terminal, session, DOMAIN_NAME).unwrap_or_default();
    Some(if domain.is_empty() { user } else { format!(r"{domain}\{user}") })
}

fn text(terminal: &Terminal, session: u32, what: i32) -> Option<String> {
    let (mut units, mut bytes) = (ptr::null_mut::<u16>(), 0);
    // SAFETY: no server means this computer; both take answers. The text has as many bytes as said, and is given back once.
    unsafe {
        if (terminal.query)(ptr::null_mut(), session, what, &raw mut units, &raw mut bytes) == 0
            || units.is_null()
        {
            return None;
        }
        let all = std::slice::from_raw_parts(units, (bytes as usize / 2).min(1024));
        let end = all.iter().position(|unit| *unit == 0).unwrap_or(all.len());
        let text = String::from_utf16_lossy(&all[..end]);
        (terminal.free)(units.cast());
        Some(text)
    }
}
