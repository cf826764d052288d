//! Device nodes and their properties, by SetupAPI and cfgmgr32; and another look for devices.

use std::io;
use std::ptr;

use windows_sys::Win32::Devices::DeviceAndDriverInstallation::{
    CM_Get_DevNode_Status, CM_LOCATE_DEVNODE_NORMAL, CM_Locate_DevNodeW, CM_REENUMERATE_RETRY_INSTALLATION,
    CM_Reenumerate_DevNode, CR_SUCCESS, DIGCF_ALLCLASSES, DIGCF_PRESENT, HDEVINFO, SP_DEVINFO_DATA,
    SetupDiDestroyDeviceInfoList, SetupDiEnumDeviceInfo, SetupDiGetClassDevsW, SetupDiGetDeviceInstanceIdW,
    SetupDiGetDevicePropertyW,
};
use windows_sys::Win32::Devices::Properties::{
    DEVPKEY_Device_Address, DEVPKEY_Device_BusNumber, DEVPKEY_Device_Class, DEVPKEY_Device_CompatibleIds,
    DEVPKEY_Device_DriverDate, DEVPKEY_Device_DriverInfPath, DEVPKEY_Device_DriverInfSection,
    DEVPKEY_Device_DriverProvider, DEVPKEY_Device_DriverVersion, DEVPKEY_Device_HardwareIds,
    DEVPKEY_Device_LocationPaths, DEVPKEY_Device_MatchingDeviceId, DEVPKEY_Device_ProblemCode,
    DEVPKEY_Device_ProblemStatus, DEVPKEY_Device_Service,
};
use windows_sys::Win32::Foundation::{DEVPROPKEY, INVALID_HANDLE_VALUE};
use windows_sys::core::GUID;

use super::{registry, wide};
use crate::devnodes::{Property, RawNode, Value};

/// Most nodes that are looked at; a PC has some hundreds.
const NODES: u32 = 10_000;

/// Where the registry has devices and drivers.
const SYSTEM: &str = r"HKLM\SYSTEM\CurrentControlSet";

/// Most bytes of a property.
const PROPERTY_LIMIT: u32 = 64 << 10;

/// Keys of pciprop.h: one category, in which the number tells.
const fn pci(number: u32) -> DEVPROPKEY {
    DEVPROPKEY { fmtid: GUID::from_u128(0x3ab22e31_8264_4b4e_9af5_a8d2d8e33e62), pid: number }
}

/// What is asked for.
const PROPERTIES: &[(Property, DEVPROPKEY)] = &[
    (Property::HardwareIds, DEVPKEY_Device_HardwareIds),
    (Property::CompatibleIds, DEVPKEY_Device_CompatibleIds),
    (Property::LocationPaths, DEVPKEY_Device_LocationPaths),
    (Property::BusNumber, DEVPKEY_Device_BusNumber),
    (Property::Address, DEVPKEY_Device_Address),
    (Property::ProblemCode, DEVPKEY_Device_ProblemCode),
    (Property::ProblemStatus, DEVPKEY_Device_ProblemStatus),
    (Property::Class, DEVPKEY_Device_Class),
    (Property::Service, DEVPKEY_Device_Service),
    (Property::DriverVersion, DEVPKEY_Device_DriverVersion),
    (Property::DriverDate, DEVPKEY_Device_DriverDate),
    (Property::DriverInf, DEVPKEY_Device_DriverInfPath),
    (Property::DriverInfSection, DEVPKEY_Device_DriverInfSection),
    (Property::DriverProvider, DEVPKEY_Device_DriverProvider),
    (Property::MatchingId, DEVPKEY_Device_MatchingDeviceId),
    (Property::LinkSpeed, pci(9)),
    (Property::LinkWidth, pci(10)),
    (Property::MaxLinkSpeed, pci(11)),
    (Property::MaxLinkWidth, pci(12)),
];

/// A set of devices, which ends with this value.
pub(super) struct Set(pub(super) HDEVINFO);

impl Drop for Set {
    fn drop(&mut self) {
        // SAFETY: made by us, destroyed once.
        unsafe { SetupDiDestroyDeviceInfoList(self.0) };
    }
}

/// Every PCI device that is there.
pub(crate) fn pci_nodes() -> io::Result<Vec<RawNode>> {
    let enumerator = wide("PCI");
    // SAFETY: no class, the enumerator ends with NUL, no window.
    let set = unsafe {
        SetupDiGetClassDevsW(
            ptr::null(),
            enumerator.as_ptr(),
            ptr::null_mut(),
            DIGCF_ALLCLASSES | DIGCF_PRESENT,
        )
    };
    if set == INVALID_HANDLE_VALUE as HDEVINFO {
        return Err(io::Error::last_os_error());
    }
    let set = Set(set);
    let mut nodes = Vec::new();
    for index in 0..NODES {
        let mut data = SP_DEVINFO_DATA { cbSize: size_of::<SP_DEVINFO_DATA>() as u32, ..Default::default() };
        // SAFETY: the structure says its size.
        if unsafe { SetupDiEnumDeviceInfo(set.0, index, &raw mut data) } == 0 {
            break; // no more, or the set is gone; both end the list
        }
        nodes.push(node(&set, &data));
    }
    Ok(nodes)
}

fn node(set: &Set, data: &SP_DEVINFO_DATA) -> RawNode {
    let mut instance = [0_u16; 256]; // MAX_DEVICE_ID_LEN is 200
    let mut wanted = 0;
    // SAFETY: the buffer is as long as said.
    unsafe { SetupDiGetDeviceInstanceIdW(set.0, data, instance.as_mut_ptr(), 256, &raw mut wanted) };
    let length = instance.iter().position(|unit| *unit == 0).unwrap_or(instance.len());
    let (mut flags, mut problem) = (0, 0);
    // SAFETY: both take an answer.
    let answer = unsafe { CM_Get_DevNode_Status(&raw mut flags, &raw mut problem, data.DevInst, 0) };
    let values = PROPERTIES.iter().filter_map(|(name, key)| Some((*name, property(set, data, key)?)));
    RawNode {
        instance: String::from_utf16_lossy(&instance[..length]),
        status: Some(if answer == 0 { Ok((flags, problem)) } else { Err(answer) }),
        values: values.collect(),
    }
}

fn property(set: &Set, data: &SP_DEVINFO_DATA, key: &DEVPROPKEY) -> Option<Value> {
    let (mut kind, mut length) = (0, 0);
    let mut ask = |bytes: &mut [u8]| {
        let address = if bytes.is_empty() { ptr::null_mut() } else { bytes.as_mut_ptr() };
        let size = bytes.len() as u32; // at most PROPERTY_LIMIT
        // SAFETY: the buffer is as long as said; kind and length take answers.
        let done = unsafe {
            SetupDiGetDevicePropertyW(set.0, data, key, &raw mut kind, address, size, &raw mut length, 0)
        };
        (done != 0, kind, length)
    };
    let (_, _, wanted) = ask(&mut []);
    if wanted == 0 || wanted > PROPERTY_LIMIT {
        return None;
    }
    let mut bytes = vec![0; wanted as usize];
    let (done, kind, length) = ask(&mut bytes);
    bytes.truncate(length as usize);
    done.then_some(Value { kind, bytes })
}

/// Where `file` would be beside the OpenGL library of each card of NVIDIA's: a driver of today keeps what has no name of its
/// own in Windows in its folder of the driver store, which its class key in the registry tells by that library only.
pub(crate) fn beside_opengl(file: &str) -> Vec<String> {
    let value = |key: &str, name: &str| registry::get(key, name).ok()??.as_text();
    let place = |node: &RawNode| {
        node.instance.to_ascii_uppercase().starts_with(r"PCI\VEN_10DE").then_some(())?;
        let class = value(&format!(r"{SYSTEM}\Enum\{}", node.instance), "Driver")?;
        let opengl = value(&format!(r"{SYSTEM}\Control\Class\{class}"), "OpenGLDriverName")?;
        opengl.rsplit_once('\\').map(|(folder, _)| format!(r"{folder}\{file}"))
    };
    pci_nodes().unwrap_or_default().iter().filter_map(place).collect()
}

/// Looks for devices again, as Device Manager's menu does, and tries drivers again where none could be installed (Microsoft,
/// `CM_Reenumerate_DevNode`). It returns before that has ended.
pub(crate) fn scan() -> io::Result<()> {
    let checked = |answer: u32| match answer {
        CR_SUCCESS => Ok(()),
        code => Err(io::Error::other(format!("the configuration manager answers with {code}"))),
    };
    let mut root = 0;
    // SAFETY: no name means the root of all devices; the number takes the answer.
    checked(unsafe { CM_Locate_DevNodeW(&raw mut root, ptr::null(), CM_LOCATE_DEVNODE_NORMAL) })?;
    // SAFETY: the node is the root.
    checked(unsafe { CM_Reenumerate_DevNode(root, CM_REENUMERATE_RETRY_INSTALLATION) })
}
