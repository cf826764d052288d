//! A process that somebody else started.

use std::io;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle};
use std::time::Duration;

use windows_sys::Win32::Foundation::{WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows_sys::Win32::System::Threading::{
    INFINITE, OpenProcess, PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

/// `ERROR_INVALID_PARAMETER`: no process has this number.
const NO_SUCH_PROCESS: i32 = 87;

/// A process that runs, or did a moment ago. Its number cannot become another one's.
pub(crate) struct Running(OwnedHandle);

impl Running {
    /// `None` if there is no such process.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        // SAFETY: it takes numbers.
        let handle = unsafe { OpenProcess(PROCESS_SYNCHRONIZE, 0, pid) };
        if !handle.is_null() {
            // SAFETY: it was just made and is closed by nobody else.
            return Ok(Some(Self(unsafe { OwnedHandle::from_raw_handle(handle) })));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(None),
            error => Err(error),
        }
    }

    /// Waits for its end; false if it did not come in time.
    pub(crate) fn wait(self, limit: Duration) -> io::Result<bool> {
        let limit = u32::try_from(limit.as_millis()).unwrap_or(INFINITE);
        // SAFETY: the handle is open.
        match unsafe { WaitForSingleObject(self.0.as_raw_handle(), limit) } {
            WAIT_OBJECT_0 => Ok(true),
            WAIT_TIMEOUT => Ok(false),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
