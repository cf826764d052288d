//! Changing the driver of a device that is there: restart, another driver, the driver before.

use std::io;
use std::path::Path;
use std::ptr;

use windows_sys::Win32::Devices::DeviceAndDriverInstallation::{
    DI_NEEDREBOOT, DI_NEEDRESTART, DICS_FLAG_CONFIGSPECIFIC, DICS_PROPCHANGE, DIF_PROPERTYCHANGE, HDEVINFO,
    INSTALLFLAG_FORCE, INSTALLFLAG_NONINTERACTIVE, ROLLBACK_FLAG_NO_UI, SP_CLASSINSTALL_HEADER,
    SP_DEVINFO_DATA, SP_DEVINSTALL_PARAMS_W, SP_PROPCHANGE_PARAMS, SetupDiCallClassInstaller,
    SetupDiCreateDeviceInfoList, SetupDiGetDeviceInstallParamsW, SetupDiOpenDeviceInfoW,
    SetupDiSetClassInstallParamsW,
};
use windows_sys::Win32::Foundation::{HWND, INVALID_HANDLE_VALUE};
use windows_sys::core::{BOOL, PCWSTR};

use super::devices::Set;
use super::machine::Library;
use super::{checked, wide};

type UpdateDriver = unsafe extern "system" fn(HWND, PCWSTR, PCWSTR, u32, *mut BOOL) -> BOOL;
type RollBackDriver =
    unsafe extern "system" fn(HDEVINFO, *const SP_DEVINFO_DATA, HWND, u32, *mut BOOL) -> BOOL;

/// One device, by its instance path.
struct Device(Set, SP_DEVINFO_DATA);

impl Device {
    fn open(instance: &str) -> io::Result<Self> {
        // SAFETY: no class, no window.
        let set = unsafe { SetupDiCreateDeviceInfoList(ptr::null(), ptr::null_mut()) };
        if set == INVALID_HANDLE_VALUE as HDEVINFO {
            return Err(io::Error::last_os_error());
        }
        let set = Set(set);
        let mut data = SP_DEVINFO_DATA { cbSize: size_of::<SP_DEVINFO_DATA>() as u32, ..Default::default() };
        // SAFETY: the instance ends with NUL, the structure says its size.
        checked(unsafe {
            SetupDiOpenDeviceInfoW(set.0, wide(instance).as_ptr(), ptr::null_mut(), 0, &raw mut data)
        })?;
        Ok(Self(set, data))
    }
}

/// Stops a device and starts it again, as Microsoft's DevCon does. Gives whether Windows must restart for it.
pub(crate) fn restart(instance: &str) -> io::Result<bool> {
    let Device(set, data) = Device::open(instance)?;
    let header = SP_CLASSINSTALL_HEADER {
        cbSize: size_of::<SP_CLASSINSTALL_HEADER>() as u32,
        InstallFunction: DIF_PROPERTYCHANGE,
    };
    let change = SP_PROPCHANGE_PARAMS {
        ClassInstallHeader: header,
        StateChange: DICS_PROPCHANGE,
        Scope: DICS_FLAG_CONFIGSPECIFIC,
        HwProfile: 0, // the present one
    };
    let size = size_of::<SP_PROPCHANGE_PARAMS>() as u32;
    // SAFETY: the header is the first part of the structure, whose size is said; the device is of the set.
    checked(unsafe {
        SetupDiSetClassInstallParamsW(set.0, &raw const data, (&raw const change).cast(), size)
    })?;
    // SAFETY: as before.
    checked(unsafe { SetupDiCallClassInstaller(DIF_PROPERTYCHANGE, set.0, &raw const data) })?;
    let mut params =
        SP_DEVINSTALL_PARAMS_W { cbSize: size_of::<SP_DEVINSTALL_PARAMS_W>() as u32, ..Default::default() };
    // SAFETY: the structure says its size.
    checked(unsafe { SetupDiGetDeviceInstallParamsW(set.0, &raw const data, &raw mut params) })?;
    Ok(params.Flags & (DI_NEEDREBOOT | DI_NEEDRESTART) != 0)
}

/// Gives every device with this hardware id the driver of this INF, also if Windows has a newer one. Gives whether Windows must
/// restart for it.
pub(crate) fn use_driver(hardware_id: &str, inf: &Path) -> io::Result<bool> {
    let library = library()?;
    // SAFETY: the type is that of newdev.h.
    let update: UpdateDriver = unsafe { function(&library, c"UpdateDriverForPlugAndPlayDevicesW") }?;
    let (id, inf, mut reboot) = (wide(hardware_id), wide(&inf.to_string_lossy()), 0);
    let flags = INSTALLFLAG_FORCE | INSTALLFLAG_NONINTERACTIVE;
    // SAFETY: both texts end with NUL, the number takes the answer.
    checked(unsafe { update(ptr::null_mut(), id.as_ptr(), inf.as_ptr(), flags, &raw mut reboot) })?;
    Ok(reboot != 0)
}

/// Gives a device the driver that it had before this one. Gives whether Windows must restart for it.
pub(crate) fn roll_back(instance: &str) -> io::Result<bool> {
    let library = library()?;
    // SAFETY: the type is that of newdev.h.
    let roll_back: RollBackDriver = unsafe { function(&library, c"DiRollbackDriver") }?;
    let Device(set, data) = Device::open(instance)?;
    let mut reboot = 0;
    // SAFETY: the device is of the set, there is no window, the number takes the answer.
    checked(unsafe {
        roll_back(set.0, &raw const data, ptr::null_mut(), ROLLBACK_FLAG_NO_UI, &raw mut reboot)
    })?;
    Ok(reboot != 0)
}

/// Loaded when it is needed: Windows' start system may have none.
fn library() -> io::Result<Library> {
    Library::open("newdev.dll")
}

/// # Safety
/// `F` must be the type of a pointer to that function.
unsafe fn function<F: Copy>(library: &Library, name: &std::ffi::CStr) -> io::Result<F> {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    let address = library.function(name)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::Unsupported, format!("newdev.dll has no {}", name.to_string_lossy()))
    })?;
    // SAFETY: the sizes are equal, the caller answers for the type.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}
