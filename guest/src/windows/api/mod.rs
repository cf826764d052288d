//! The calls of the Windows API that the program makes, as safe functions. Errors are Windows' own numbers.

pub(crate) mod account;
pub(crate) mod devices;
pub(crate) mod drivers;
pub(crate) mod events;
pub(crate) mod facts;
pub(crate) mod machine;
pub(crate) mod registry;
pub(crate) mod running;
pub(crate) mod service;
pub(crate) mod session;

use std::fs::File;
use std::io;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle};
use std::process::Child;
use std::ptr;

use windows_sys::Win32::Devices::Communication::{
    COMMTIMEOUTS, DCB, GetCommState, SetCommState, SetCommTimeouts,
};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, TerminateJobObject,
};

/// A text as Windows takes it: UTF-16 with a NUL at its end. A NUL inside would cut it, so it ends there.
pub(crate) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().take_while(|unit| *unit != 0).chain([0]).collect()
}

/// The number of an error as an [`io::Error`], whose text Windows gives in the language of the guest.
pub(crate) fn error(code: u32) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}

/// Result of a call that answers 0 for failure.
fn checked(answer: i32) -> io::Result<()> {
    if answer == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Result of a call that answers an error number, 0 for none.
fn numbered(code: u32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(error(code)) }
}

/// A process with all its descendants.
pub(crate) struct Job(OwnedHandle);

impl Job {
    /// Takes a process that was just started; `None` if Windows has no job for it, and then only it can be ended.
    pub(crate) fn around(child: &Child) -> Option<Self> {
        // SAFETY: no security attributes, no name; the handle is ours alone.
        let handle = unsafe { CreateJobObjectW(ptr::null(), ptr::null()) };
        if handle.is_null() {
            return None;
        }
        // SAFETY: it was just made and is closed by nobody else.
        let job = Self(unsafe { OwnedHandle::from_raw_handle(handle) });
        // SAFETY: both handles live as long as the call.
        let joined = unsafe { AssignProcessToJobObject(job.0.as_raw_handle(), child.as_raw_handle()) };
        (joined != 0).then_some(job)
    }

    /// Ends everything in it.
    pub(crate) fn end(&self) {
        // SAFETY: the handle is open. A failure leaves what `Child::kill` ends.
        unsafe { TerminateJobObject(self.0.as_raw_handle(), 1) };
    }
}

/// Sets 115200 baud and a limit for each write, if the file is a serial port; other files stay as they are.
pub(crate) fn set_up_serial_port(file: &File) {
    let handle = file.as_raw_handle();
    // SAFETY: plain data, for which zeros are a valid value; the handle is open.
    unsafe {
        let mut dcb: DCB = std::mem::zeroed();
        dcb.DCBlength = size_of::<DCB>() as u32;
        if GetCommState(handle, &raw mut dcb) != 0 {
            (dcb.BaudRate, dcb.ByteSize, dcb.Parity, dcb.StopBits) = (115_200, 8, 0, 0);
            SetCommState(handle, &raw const dcb);
        }
        let limits = COMMTIMEOUTS { WriteTotalTimeoutConstant: 5000, ..std::mem::zeroed() };
        SetCommTimeouts(handle, &raw const limits);
    }
}
