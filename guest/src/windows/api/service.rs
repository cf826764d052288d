//! The service manager: other services, and being one.

use std::io;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use windows_sys::Win32::Foundation::ERROR_SERVICE_DOES_NOT_EXIST;
use windows_sys::Win32::System::Services::{
    ChangeServiceConfigW, CloseServiceHandle, ControlService, CreateServiceW, DeleteService, OpenSCManagerW,
    OpenServiceW, QUERY_SERVICE_CONFIGW, QueryServiceConfigW, QueryServiceStatusEx,
    RegisterServiceCtrlHandlerExW, SC_HANDLE, SC_MANAGER_CONNECT, SC_MANAGER_CREATE_SERVICE,
    SC_STATUS_PROCESS_INFO, SERVICE_ALL_ACCESS, SERVICE_AUTO_START, SERVICE_CONTROL_STOP,
    SERVICE_ERROR_NORMAL, SERVICE_NO_CHANGE, SERVICE_RUNNING, SERVICE_STATUS, SERVICE_STATUS_PROCESS,
    SERVICE_STOPPED, SERVICE_TABLE_ENTRYW, SERVICE_WIN32_OWN_PROCESS, SetServiceStatus,
    StartServiceCtrlDispatcherW, StartServiceW,
};

use super::{checked, wide};

struct Handle(SC_HANDLE);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { CloseServiceHandle(self.0) };
    }
}

fn owned(handle: SC_HANDLE) -> io::Result<Handle> {
    if handle.is_null() { Err(io::Error::last_os_error()) } else { Ok(Handle(handle)) }
}

fn manager(access: u32) -> io::Result<Handle> {
    // SAFETY: this machine, the active database.
    owned(unsafe { OpenSCManagerW(ptr::null(), ptr::null(), access) })
}

/// A service that is there.
pub(crate) struct Service(Handle);

impl Service {
    /// `None` if there is no service of that name.
    pub(crate) fn open(name: &str) -> io::Result<Option<Self>> {
        let manager = manager(SC_MANAGER_CONNECT)?;
        let name = wide(name);
        // SAFETY: the name ends with NUL.
        match owned(unsafe { OpenServiceW(manager.0, name.as_ptr(), SERVICE_ALL_ACCESS) }) {
            Err(error) if error.raw_os_error() == Some(ERROR_SERVICE_DOES_NOT_EXIST.cast_signed()) => {
                Ok(None)
            }
            handle => handle.map(|handle| Some(Self(handle))),
        }
    }

    /// Makes a service that starts with Windows as LocalSystem.
    pub(crate) fn create(name: &str, command_line: &str) -> io::Result<()> {
        let manager = manager(SC_MANAGER_CONNECT | SC_MANAGER_CREATE_SERVICE)?;
        let (name, command_line) = (wide(name), wide(command_line));
        // SAFETY: texts end with NUL; no group, no dependencies, no account: LocalSystem.
        owned(unsafe {
            CreateServiceW(
                manager.0,
                name.as_ptr(),
                name.as_ptr(),
                SERVICE_ALL_ACCESS,
                SERVICE_WIN32_OWN_PROCESS,
                SERVICE_AUTO_START,
                SERVICE_ERROR_NORMAL,
                command_line.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
            )
        })
        .map(drop)
    }

    /// Removes it; it goes when its process has ended.
    pub(crate) fn delete(&self) -> io::Result<()> {
        // SAFETY: the handle is open.
        checked(unsafe { DeleteService(self.0.0) })
    }

    /// How it starts, in Windows' numbers.
    pub(crate) fn start_type(&self) -> io::Result<u32> {
        // As much as Windows ever wants here, in words so that the structure lies right.
        let mut buffer = [0_u64; 1024];
        let (address, mut wanted) = (buffer.as_mut_ptr().cast::<QUERY_SERVICE_CONFIGW>(), 0);
        let length = size_of_val(&buffer) as u32;
        // SAFETY: the buffer is aligned and as long as said; the structure lies at its beginning.
        unsafe {
            checked(QueryServiceConfigW(self.0.0, address, length, &raw mut wanted))?;
            Ok((*address).dwStartType)
        }
    }

    /// Changes how it starts and, if given, what it runs.
    pub(crate) fn configure(&self, start_type: u32, command_line: Option<&str>) -> io::Result<()> {
        let command_line = command_line.map(wide);
        let command_line = command_line.as_ref().map_or(ptr::null(), |line| line.as_ptr());
        let same = SERVICE_NO_CHANGE;
        // SAFETY: a null pointer means that it stays as it is.
        checked(unsafe {
            ChangeServiceConfigW(
                self.0.0,
                same,
                start_type,
                same,
                command_line,
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
            )
        })
    }

    /// State and exit code, in Windows' numbers.
    pub(crate) fn status(&self) -> io::Result<(u32, u32)> {
        let (mut status, mut wanted) = (SERVICE_STATUS_PROCESS::default(), 0);
        let length = size_of::<SERVICE_STATUS_PROCESS>() as u32;
        // SAFETY: the structure is as long as said.
        checked(unsafe {
            let address = (&raw mut status).cast();
            QueryServiceStatusEx(self.0.0, SC_STATUS_PROCESS_INFO, address, length, &raw mut wanted)
        })?;
        Ok((status.dwCurrentState, status.dwWin32ExitCode))
    }

    /// Asks it to start.
    pub(crate) fn start(&self) -> io::Result<()> {
        // SAFETY: no arguments.
        checked(unsafe { StartServiceW(self.0.0, 0, ptr::null()) })
    }

    /// Asks it to stop.
    pub(crate) fn stop(&self) -> io::Result<()> {
        let mut status = SERVICE_STATUS::default();
        // SAFETY: `status` takes the answer.
        checked(unsafe { ControlService(self.0.0, SERVICE_CONTROL_STOP, &raw mut status) })
    }
}

type Work = Box<dyn FnOnce() -> u32 + Send>;

/// What the service does; the entry that Windows calls takes it from here.
static WORK: Mutex<Option<Work>> = Mutex::new(None);

/// Runs `work` as the service that Windows has started this process for; fails in any other process.
pub(crate) fn dispatch(work: Work) -> io::Result<()> {
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    let mut name = [0_u16]; // not looked at for a process with one service
    let table = [
        SERVICE_TABLE_ENTRYW { lpServiceName: name.as_mut_ptr(), lpServiceProc: Some(service_main) },
        SERVICE_TABLE_ENTRYW::default(),
    ];
    // SAFETY: the table ends with an empty entry and lives until the call returns, which is when the service ended.
    checked(unsafe { StartServiceCtrlDispatcherW(table.as_ptr()) })
}

extern "system" fn service_main(_: u32, _: *mut windows_sys::core::PWSTR) {
    let name = [0_u16];
    // SAFETY: the handler takes any arguments and touches nothing.
    let handle = unsafe { RegisterServiceCtrlHandlerExW(name.as_ptr(), Some(control), ptr::null()) };
    if handle.is_null() {
        return;
    }
    let tell = |state, code| {
        let status = SERVICE_STATUS {
            dwServiceType: SERVICE_WIN32_OWN_PROCESS,
            dwCurrentState: state,
            dwWin32ExitCode: code,
            ..SERVICE_STATUS::default()
        };
        // SAFETY: the handle is the one of this service.
        unsafe { SetServiceStatus(handle, &raw const status) };
    };
    tell(SERVICE_RUNNING, 0);
    let work = WORK.lock().unwrap_or_else(PoisonError::into_inner).take();
    let code = work.map_or(0, |work| work());
    tell(SERVICE_STOPPED, code);
}

/// It accepts no control: a set-up is not stopped halfway, and survives it if Windows ends.
extern "system" fn control(_: u32, _: u32, _: *mut core::ffi::c_void, _: *mut core::ffi::c_void) -> u32 {
    0
}
