//! Structures that Vulkan takes and fills, as the specification has them.

use std::ffi::{c_char, c_void};
use std::ptr;

use super::{Handle, Object};

/// `VkStructureType` and `pNext`, with which most structures begin.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u32,
    pub(super) next: *const c_void,
}

pub(super) const fn head(kind: u32) -> Head {
    Head { kind, next: ptr::null() }
}

#[repr(C)]
pub(super) struct ApplicationInfo {
    pub(super) head: Head,
    pub(super) name: *const c_char,
    pub(super) version: u32,
    pub(super) engine: *const c_char,
    pub(super) engine_version: u32,
    pub(super) api: u32,
}

#[repr(C)]
pub(super) struct InstanceInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) application: *const ApplicationInfo,
    pub(super) layers: u32,
    pub(super) layer_names: *const *const c_char,
    pub(super) extensions: u32,
    pub(super) extension_names: *const *const c_char,
}

#[repr(C)]
pub(super) struct Properties2 {
    pub(super) kind: u32,
    pub(super) next: *mut c_void,
    pub(super) api: u32,
    pub(super) driver: u32,
    pub(super) vendor: u32,
    pub(super) device: u32,
    pub(super) device_kind: u32,
    pub(super) name: [u8; 256],
    pub(super) uuid: [u8; 16],
    pub(super) limits: [u64; 63],
    pub(super) sparse: [u32; 5],
}

/// `VkPhysicalDevicePCIBusInfoPropertiesEXT`.
#[repr(C)]
pub(super) struct PciInfo {
    pub(super) kind: u32,
    pub(super) next: *mut c_void,
    pub(super) domain: u32,
    pub(super) bus: u32,
    pub(super) device: u32,
    pub(super) function: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Extension {
    pub(super) name: [u8; 256],
    pub(super) version: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct QueueFamily {
    pub(super) flags: u32,
    pub(super) count: u32,
    pub(super) timestamp_bits: u32,
    pub(super) granularity: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct MemoryType {
    pub(super) flags: u32,
    pub(super) heap: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Heap {
    pub(super) size: u64,
    pub(super) flags: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Memory {
    pub(super) type_count: u32,
    pub(super) types: [MemoryType; 32],
    pub(super) heap_count: u32,
    pub(super) heaps: [Heap; 16],
}

#[repr(C)]
pub(super) struct QueueInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) family: u32,
    pub(super) count: u32,
    pub(super) priorities: *const f32,
}

#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) queues: u32,
    pub(super) queue_infos: *const QueueInfo,
    pub(super) layers: u32,
    pub(super) layer_names: *const *const c_char,
    pub(super) extensions: u32,
    pub(super) extension_names: *const *const c_char,
    pub(super) features: *const c_void,
}

#[repr(C)]
pub(super) struct BufferInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) size: u64,
    pub(super) usage: u32,
    pub(super) sharing: u32,
    pub(super) families: u32,
    pub(super) family_indices: *const u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Requirements {
    pub(super) size: u64,
    pub(super) alignment: u64,
    pub(super) types: u32,
}

#[repr(C)]
pub(super) struct AllocateInfo {
    pub(super) head: Head,
    pub(super) size: u64,
    pub(super) kind: u32,
}

#[repr(C)]
pub(super) struct ShaderInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) size: usize,
    pub(super) code: *const u32,
}

#[repr(C)]
pub(super) struct Binding {
    pub(super) binding: u32,
    pub(super) kind: u32,
    pub(super) count: u32,
    pub(super) stages: u32,
    pub(super) samplers: *const c_void,
}

#[repr(C)]
pub(super) struct SetLayoutInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) count: u32,
    pub(super) bindings: *const Binding,
}

#[repr(C)]
pub(super) struct PushRange {
    pub(super) stages: u32,
    pub(super) offset: u32,
    pub(super) size: u32,
}

#[repr(C)]
pub(super) struct LayoutInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) sets: u32,
    pub(super) set_layouts: *const Handle,
    pub(super) ranges: u32,
    pub(super) push_ranges: *const PushRange,
}

#[repr(C)]
pub(super) struct StageInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) stage: u32,
    pub(super) module: Handle,
    pub(super) name: *const c_char,
    pub(super) specialization: *const c_void,
}

#[repr(C)]
pub(super) struct PipelineInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) stage: StageInfo,
    pub(super) layout: Handle,
    pub(super) base: Handle,
    pub(super) base_index: i32,
}

#[repr(C)]
pub(super) struct PoolSize {
    pub(super) kind: u32,
    pub(super) count: u32,
}

#[repr(C)]
pub(super) struct SetPoolInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) max_sets: u32,
    pub(super) sizes: u32,
    pub(super) pool_sizes: *const PoolSize,
}

#[repr(C)]
pub(super) struct SetInfo {
    pub(super) head: Head,
    pub(super) pool: Handle,
    pub(super) count: u32,
    pub(super) layouts: *const Handle,
}

#[repr(C)]
pub(super) struct BufferRange {
    pub(super) buffer: Handle,
    pub(super) offset: u64,
    pub(super) range: u64,
}

#[repr(C)]
pub(super) struct WriteSet {
    pub(super) head: Head,
    pub(super) set: Handle,
    pub(super) binding: u32,
    pub(super) element: u32,
    pub(super) count: u32,
    pub(super) kind: u32,
    pub(super) images: *const c_void,
    pub(super) buffers: *const BufferRange,
    pub(super) texels: *const c_void,
}

#[repr(C)]
pub(super) struct PoolInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) family: u32,
}

#[repr(C)]
pub(super) struct CommandsInfo {
    pub(super) head: Head,
    pub(super) pool: Handle,
    pub(super) level: u32,
    pub(super) count: u32,
}

#[repr(C)]
pub(super) struct BeginInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
    pub(super) inheritance: *const c_void,
}

#[repr(C)]
pub(super) struct Region {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) size: u64,
}

#[repr(C)]
pub(super) struct Barrier {
    pub(super) head: Head,
    pub(super) from: u32,
    pub(super) to: u32,
}

#[repr(C)]
pub(super) struct FenceInfo {
    pub(super) head: Head,
    pub(super) flags: u32,
}

#[repr(C)]
pub(super) struct SubmitInfo {
    pub(super) head: Head,
    pub(super) waits: u32,
    pub(super) wait_semaphores: *const Handle,
    pub(super) wait_stages: *const u32,
    pub(super) commands: u32,
    pub(super) command_buffers: *const Object,
    pub(super) signals: u32,
    pub(super) signal_semaphores: *const Handle,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that a C compiler gives the structures of vulkan_core.h that drivers write to.
    #[test]
    fn structures_have_the_sizes_of_the_header() {
        assert_eq!((size_of::<Properties2>(), size_of::<PciInfo>()), (840, 32));
        assert_eq!((size_of::<Memory>(), size_of::<QueueFamily>(), size_of::<Extension>()), (520, 24, 260));
        assert_eq!((size_of::<PipelineInfo>(), size_of::<WriteSet>(), size_of::<DeviceInfo>()), (96, 64, 72));
    }
}
