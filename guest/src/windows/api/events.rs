//! Windows' event log by `wevtapi.dll` (winevt.h), loaded when it is asked: Wine and Windows PE have little of it.

use std::ffi::c_void;
use std::io;
use std::ptr;

use super::machine::Library;
use super::wide;
use crate::native::functions;

type Handle = *mut c_void;

functions! {
    /// What is used of it.
    Functions {
        query = c"EvtQuery": (Handle, *const u16, *const u16, u32) -> Handle;
        next = c"EvtNext": (Handle, u32, *mut Handle, u32, u32, *mut u32) -> i32;
        render = c"EvtRender": (Handle, Handle, u32, u32, *mut u16, *mut u32, *mut u32) -> i32;
        close = c"EvtClose": (Handle) -> i32;
    }
}

/// `EvtQueryChannelPath | EvtQueryReverseDirection`: by the log's name, the newest first.
const NEWEST_OF_LOG: u32 = 0x1 | 0x200;
/// `EvtRenderEventXml`.
const AS_XML: u32 = 1;
/// `ERROR_NO_MORE_ITEMS`.
const NO_MORE: i32 = 259;
/// For one answer of the log's service.
const ANSWER_MS: u32 = 5000;
/// Bytes of one entry; Windows' own limit is 64 KB.
const ENTRY_BYTES: u32 = 128 << 10;

struct Open<'a>(&'a Functions, Handle);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { (self.0.close)(self.1) };
    }
}

/// At most `most` entries of the log that `query` selects, as XML, the newest first.
pub(crate) fn newest(log: &str, query: &str, most: usize) -> io::Result<Vec<String>> {
    let library = Library::open("wevtapi.dll")?;
    let address = |name: &std::ffi::CStr| {
        library.function(name).ok().flatten().map_or(ptr::null_mut(), |address| address as *mut c_void)
    };
    // SAFETY: the addresses are those of the library's functions of these names.
    let functions = unsafe { Functions::new(address) }.map_err(io::Error::other)?;
    let (log, query) = (wide(log), wide(query));
    // SAFETY: no session means this computer; both texts end with NUL.
    let found = unsafe { (functions.query)(ptr::null_mut(), log.as_ptr(), query.as_ptr(), NEWEST_OF_LOG) };
    if found.is_null() {
        return Err(why("EvtQuery"));
    }
    let found = Open(&functions, found);
    let mut buffer = vec![0_u16; ENTRY_BYTES as usize / 2];
    let mut entries = Vec::new();
    while entries.len() < most {
        let (mut event, mut count) = (ptr::null_mut(), 0);
        // SAFETY: room for one handle, as said.
        if unsafe { (functions.next)(found.1, 1, &raw mut event, ANSWER_MS, 0, &raw mut count) } == 0 {
            let error = why("EvtNext");
            return if error.raw_os_error() == Some(NO_MORE) { Ok(entries) } else { Err(error) };
        }
        let event = Open(&functions, event);
        entries.extend(xml(&functions, &event, &mut buffer)?);
    }
    Ok(entries)
}

/// Why a call failed; Wine's has no reason.
fn why(call: &str) -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(0) {
        return io::Error::other(format!("{call} gives nothing and no reason"));
    }
    error
}

/// An entry; `None` for one that is too long.
fn xml(functions: &Functions, event: &Open<'_>, buffer: &mut [u16]) -> io::Result<Option<String>> {
    const TOO_SMALL: i32 = 122; // ERROR_INSUFFICIENT_BUFFER
    let (mut used, mut properties) = (0, 0);
    // SAFETY: no context is needed for XML; the buffer has as many bytes as said.
    let done = unsafe {
        (functions.render)(
            ptr::null_mut(),
            event.1,
            AS_XML,
            ENTRY_BYTES,
            buffer.as_mut_ptr(),
            &raw mut used,
            &raw mut properties,
        )
    };
    if done == 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(TOO_SMALL) { Ok(None) } else { Err(error) };
    }
    let units = &buffer[..(used as usize / 2).min(buffer.len())];
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    Ok(Some(String::from_utf16_lossy(&units[..end])))
}
