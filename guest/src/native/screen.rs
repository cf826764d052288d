//! The screen of this session by GDI: a part of the desktop as pixels. Types and numbers are those of wingdi.h and winuser.h.

use std::ffi::c_void;
use std::ptr;

use super::{Library, functions};

type Raw = *mut c_void;

/// Widest and highest part that is taken.
const LONGEST: u32 = 16_384;
/// Most pixels.
const PIXELS: u64 = 64 << 20;
/// `SRCCOPY | CAPTUREBLT`: with windows that are layered.
const COPY: u32 = 0x00cc_0020 | 0x4000_0000;

functions! {
    /// Of user32.dll.
    User {
        get = c"GetDC": (Raw) -> Raw;
        release = c"ReleaseDC": (Raw, Raw) -> i32;
    }
}

functions! {
    /// Of gdi32.dll.
    Gdi {
        compatible = c"CreateCompatibleDC": (Raw) -> Raw;
        section = c"CreateDIBSection": (Raw, *const Header, u32, *mut *mut u8, Raw, u32) -> Raw;
        select = c"SelectObject": (Raw, Raw) -> Raw;
        blit = c"BitBlt": (Raw, i32, i32, i32, i32, Raw, i32, i32, u32) -> i32;
        flush = c"GdiFlush": () -> i32;
        delete = c"DeleteObject": (Raw) -> i32;
        delete_context = c"DeleteDC": (Raw) -> i32;
    }
}

/// `BITMAPINFOHEADER`.
#[repr(C)]
struct Header {
    size: u32,
    width: i32,
    height: i32,
    planes: u16,
    bits: u16,
    compression: u32,
    more: [u32; 5],
}

/// Where a part of the desktop is, in its coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) left: i32,
    pub(crate) top: i32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Red, green and blue of each pixel, row by row; the error names the call that did not give them.
pub(crate) fn capture(part: Part) -> Result<Vec<u8>, String> {
    let Part { left, top, width, height } = part;
    if width == 0
        || height == 0
        || width > LONGEST
        || height > LONGEST
        || u64::from(width) * u64::from(height) > PIXELS
    {
        return Err(format!("a part of the desktop of {width} x {height} pixels is not taken"));
    }
    let user = Library::open(&["user32.dll"])?;
    let gdi = Library::open(&["gdi32.dll"])?;
    let of = |library: &Library, name: &std::ffi::CStr| {
        // SAFETY: it is only looked up as an address.
        unsafe { library.function::<Raw>(name) }.unwrap_or(ptr::null_mut())
    };
    // SAFETY: the addresses are those of the libraries' functions of these names.
    let (user, gdi) = unsafe { (User::new(|name| of(&user, name))?, Gdi::new(|name| of(&gdi, name))?) };
    let header = Header {
        size: size_of::<Header>() as u32,
        width: width.cast_signed(),
        height: -height.cast_signed(), // the first row first
        planes: 1,
        bits: 32,
        compression: 0,
        more: [0; 5],
    };
    let mut bytes: *mut u8 = ptr::null_mut();
    // SAFETY: each object is looked at before it is used and given back once; the bitmap's bytes live as long as it, and have four
    // bytes for each pixel.
    unsafe {
        let screen = (user.get)(ptr::null_mut());
        if screen.is_null() {
            return Err("GetDC gives no screen".into());
        }
        let memory = (gdi.compatible)(screen);
        let bitmap = (gdi.section)(memory, &raw const header, 0, &raw mut bytes, ptr::null_mut(), 0);
        let result = if memory.is_null() || bitmap.is_null() || bytes.is_null() {
            Err("CreateDIBSection gives no bitmap".to_owned())
        } else {
            let before = (gdi.select)(memory, bitmap);
            let (w, h) = (width.cast_signed(), height.cast_signed());
            let done = (gdi.blit)(memory, 0, 0, w, h, screen, left, top, COPY);
            (gdi.flush)();
            let pixels = std::slice::from_raw_parts(bytes, width as usize * height as usize * 4);
            let colors =
                pixels.as_chunks::<4>().0.iter().flat_map(|[blue, green, red, _]| [*red, *green, *blue]);
            let read = if done == 0 {
                Err("BitBlt copies nothing of the screen".to_owned())
            } else {
                Ok(colors.collect())
            };
            (gdi.select)(memory, before);
            read
        };
        (gdi.delete)(bitmap);
        (gdi.delete_context)(memory);
        (user.release)(ptr::null_mut(), screen);
        result
    }
}

// The size that a C compiler gives the structure of the header.
const _: () = assert!(size_of::<Header>() == 40);
