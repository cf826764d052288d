//! Facts about the running system that are in no registry.

use std::arch::x86_64::__cpuid;
use std::ptr;

use windows_sys::Win32::System::SystemInformation::GetTickCount64;

use super::machine::Library;

/// Whether the processor says that there is a hypervisor, and what that calls itself.
pub(crate) fn hypervisor() -> (bool, Option<String>) {
    // The bit that real processors keep at 0 for this purpose.
    if __cpuid(1).ecx >> 31 == 0 {
        return (false, None);
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let name: String =
        bytes.iter().filter(|b| b.is_ascii_graphic() || **b == b' ').map(|b| char::from(*b)).collect();
    (true, Some(name.trim_end().to_owned()).filter(|name| !name.is_empty()))
}

/// Milliseconds since Windows started.
pub(crate) fn uptime_ms() -> u64 {
    // SAFETY: it takes nothing.
    unsafe { GetTickCount64() }
}

type QuerySystemInformation = unsafe extern "system" fn(i32, *mut core::ffi::c_void, u32, *mut u32) -> i32;

/// Whether memory integrity (HVCI) is at work: class 103 of `NtQuerySystemInformation`, as documented in winternl.h.
pub(crate) fn memory_integrity() -> Option<bool> {
    const CODE_INTEGRITY: i32 = 103;
    const HVCI_ENABLED: u32 = 0x400; // CODEINTEGRITY_OPTION_HVCI_KMCI_ENABLED
    let function = Library::open("ntdll.dll").ok()?.function(c"NtQuerySystemInformation").ok()?;
    let mut answer = [8_u32, 0]; // its own size, options
    // SAFETY: the type is the documented one, the structure has 8 bytes.
    let status = unsafe {
        let function: QuerySystemInformation = std::mem::transmute(function);
        function(CODE_INTEGRITY, answer.as_mut_ptr().cast(), 8, ptr::null_mut())
    };
    (status == 0).then_some(answer[1] & HVCI_ENABLED != 0)
}
