//! Vulkan: which devices there are; [`compute`] lets one of them work.
//!
//! Types, numbers and functions are those of the Vulkan specification (version 1.1, and VK_EXT_pci_bus_info). Objects
//! are left to the end of the process, which follows at once.

mod compute;
mod types;

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use super::{Library, functions, text};
use types::{
    AllocateInfo, ApplicationInfo, Barrier, BeginInfo, BufferInfo, CommandsInfo, DeviceInfo, Extension,
    FenceInfo, InstanceInfo, LayoutInfo, Memory, PciInfo, PipelineInfo, PoolInfo, Properties2, QueueFamily,
    Region, Requirements, SetInfo, SetLayoutInfo, SetPoolInfo, ShaderInfo, SubmitInfo, WriteSet, head,
};

type Handle = u64; // a non-dispatchable object
type Object = *mut c_void; // a dispatchable one
type Code = i32;

const LIBRARY: &[&str] = if cfg!(windows) { &["vulkan-1.dll"] } else { &["libvulkan.so.1"] };
const VERSION_1_1: u32 = 1 << 22 | 1 << 12;
const PCI_BUS_INFO: &CStr = c"VK_EXT_pci_bus_info";

const KIND_CPU: u32 = 4;
const TIMEOUT: Code = 2;

functions! {
    /// Functions that need no instance.
    Entry {
        create_instance = c"vkCreateInstance": (*const InstanceInfo, *const c_void, *mut Object) -> Code;
    }
}

functions! {
    /// Functions of an instance and its devices. The loader's own pointers serve every device.
    Functions {
        devices = c"vkEnumeratePhysicalDevices": (Object, *mut u32, *mut Object) -> Code;
        properties = c"vkGetPhysicalDeviceProperties2": (Object, *mut Properties2);
        extensions = c"vkEnumerateDeviceExtensionProperties": (Object, *const c_char, *mut u32, *mut Extension) -> Code;
        queues = c"vkGetPhysicalDeviceQueueFamilyProperties": (Object, *mut u32, *mut QueueFamily);
        memory = c"vkGetPhysicalDeviceMemoryProperties": (Object, *mut Memory);
        create_device = c"vkCreateDevice": (Object, *const DeviceInfo, *const c_void, *mut Object) -> Code;
        queue = c"vkGetDeviceQueue": (Object, u32, u32, *mut Object);
        create_buffer = c"vkCreateBuffer": (Object, *const BufferInfo, *const c_void, *mut Handle) -> Code;
        requirements = c"vkGetBufferMemoryRequirements": (Object, Handle, *mut Requirements);
        allocate = c"vkAllocateMemory": (Object, *const AllocateInfo, *const c_void, *mut Handle) -> Code;
        bind = c"vkBindBufferMemory": (Object, Handle, Handle, u64) -> Code;
        map = c"vkMapMemory": (Object, Handle, u64, u64, u32, *mut *mut c_void) -> Code;
        create_shader = c"vkCreateShaderModule": (Object, *const ShaderInfo, *const c_void, *mut Handle) -> Code;
        create_set_layout = c"vkCreateDescriptorSetLayout": (Object, *const SetLayoutInfo, *const c_void, *mut Handle) -> Code;
        create_layout = c"vkCreatePipelineLayout": (Object, *const LayoutInfo, *const c_void, *mut Handle) -> Code;
        create_pipelines = c"vkCreateComputePipelines": (Object, Handle, u32, *const PipelineInfo, *const c_void, *mut Handle) -> Code;
        create_set_pool = c"vkCreateDescriptorPool": (Object, *const SetPoolInfo, *const c_void, *mut Handle) -> Code;
        allocate_sets = c"vkAllocateDescriptorSets": (Object, *const SetInfo, *mut Handle) -> Code;
        update_sets = c"vkUpdateDescriptorSets": (Object, u32, *const WriteSet, u32, *const c_void);
        create_pool = c"vkCreateCommandPool": (Object, *const PoolInfo, *const c_void, *mut Handle) -> Code;
        allocate_commands = c"vkAllocateCommandBuffers": (Object, *const CommandsInfo, *mut Object) -> Code;
        begin = c"vkBeginCommandBuffer": (Object, *const BeginInfo) -> Code;
        copy = c"vkCmdCopyBuffer": (Object, Handle, Handle, u32, *const Region);
        barrier = c"vkCmdPipelineBarrier": (Object, u32, u32, u32, u32, *const Barrier, u32, *const c_void, u32, *const c_void);
        bind_pipeline = c"vkCmdBindPipeline": (Object, u32, Handle);
        bind_sets = c"vkCmdBindDescriptorSets": (Object, u32, Handle, u32, u32, *const Handle, u32, *const u32);
        push = c"vkCmdPushConstants": (Object, Handle, u32, u32, u32, *const c_void);
        dispatch = c"vkCmdDispatch": (Object, u32, u32, u32);
        end = c"vkEndCommandBuffer": (Object) -> Code;
        create_fence = c"vkCreateFence": (Object, *const FenceInfo, *const c_void, *mut Handle) -> Code;
        submit = c"vkQueueSubmit": (Object, u32, *const SubmitInfo, Handle) -> Code;
        wait = c"vkWaitForFences": (Object, u32, *const Handle, u32, u64) -> Code;
    }
}

/// Vulkan, as far as it is here.
pub(crate) struct Vulkan {
    f: Functions,
    instance: Object,
}

/// One physical device.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    object: Object,
    pub(crate) name: String,
    pub(crate) vendor: u32,
    pub(crate) device: u32,
    /// A renderer on the processor, by the device's own words.
    pub(crate) software: bool,
    /// Domain, bus, device and function, if the driver says them.
    pub(crate) place: Option<[u32; 4]>,
    pub(crate) driver: u32,
    /// Largest heap of the device's own memory.
    pub(crate) memory: u64,
}

fn checked(what: &str, code: Code) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what} gives {code} ({})", code_name(code))) }
}

/// Names of `VkResult`.
fn code_name(code: Code) -> &'static str {
    match code {
        TIMEOUT => "timeout",
        -1 => "out of host memory",
        -2 => "out of device memory",
        -3 => "initialization failed",
        -4 => "device lost",
        -9 => "incompatible driver",
        _ => "see VkResult",
    }
}

/// Why Vulkan could not be used.
pub(crate) enum Absent {
    /// No library.
    Library(String),
    /// The library is there and cannot make an instance.
    Instance(String),
}

impl Vulkan {
    pub(crate) fn load() -> Result<Self, Absent> {
        let library = Library::open(LIBRARY).map_err(Absent::Library)?;
        type GetProcAddr = unsafe extern "system" fn(Object, *const c_char) -> *mut c_void;
        // SAFETY: the type is the one of the specification.
        let get: GetProcAddr = unsafe { library.function(c"vkGetInstanceProcAddr") }
            .ok_or_else(|| Absent::Library("no vkGetInstanceProcAddr in the library".into()))?;
        // SAFETY: the loader knows its functions by name; null for others.
        let entry =
            unsafe { Entry::new(|name| get(ptr::null_mut(), name.as_ptr())) }.map_err(Absent::Instance)?;
        let application = ApplicationInfo {
            head: head(0),
            name: c"no43-guest".as_ptr(),
            version: 1,
            engine: ptr::null(),
            engine_version: 0,
            api: VERSION_1_1,
        };
        let info = InstanceInfo {
            head: head(1),
            flags: 0,
            application: &raw const application,
            layers: 0,
            layer_names: ptr::null(),
            extensions: 0,
            extension_names: ptr::null(),
        };
        let mut instance = ptr::null_mut();
        // SAFETY: all pointers live as long as the call.
        let code = unsafe { (entry.create_instance)(&raw const info, ptr::null(), &raw mut instance) };
        checked("vkCreateInstance", code).map_err(Absent::Instance)?;
        // SAFETY: as above, with an instance.
        let f = unsafe { Functions::new(|name| get(instance, name.as_ptr())) }.map_err(Absent::Instance)?;
        Ok(Self { f, instance })
    }

    /// Every device, in the loader's order.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, String> {
        let mut objects = [ptr::null_mut(); 64];
        let mut count = objects.len() as u32;
        // SAFETY: the array is as long as said.
        let code = unsafe { (self.f.devices)(self.instance, &raw mut count, objects.as_mut_ptr()) };
        if code != 5 {
            checked("vkEnumeratePhysicalDevices", code)?; // 5: there are more
        }
        Ok(objects[..(count as usize).min(objects.len())].iter().map(|object| self.device(*object)).collect())
    }

    fn device(&self, object: Object) -> Device {
        let has_place = self.has_extension(object, PCI_BUS_INFO);
        let mut pci =
            PciInfo { kind: 1_000_212_000, next: ptr::null_mut(), domain: 0, bus: 0, device: 0, function: 0 };
        let mut p = Properties2 {
            kind: 1_000_059_001,
            next: if has_place { (&raw mut pci).cast() } else { ptr::null_mut() },
            api: 0,
            driver: 0,
            vendor: 0,
            device: 0,
            device_kind: 0,
            name: [0; 256],
            uuid: [0; 16],
            limits: [0; 63],
            sparse: [0; 5],
        };
        let mut memory = Memory::default();
        // SAFETY: both take an answer of the size that the specification says.
        unsafe {
            (self.f.properties)(object, &raw mut p);
            (self.f.memory)(object, &raw mut memory);
        }
        let own =
            memory.heaps[..(memory.heap_count as usize).min(16)].iter().filter(|heap| heap.flags & 1 != 0);
        Device {
            object,
            name: text(&p.name),
            vendor: p.vendor,
            device: p.device,
            software: p.device_kind == KIND_CPU,
            place: has_place.then_some([pci.domain, pci.bus, pci.device, pci.function]),
            driver: p.driver,
            memory: own.map(|heap| heap.size).max().unwrap_or(0),
        }
    }

    fn has_extension(&self, object: Object, name: &CStr) -> bool {
        let mut count = 0;
        // SAFETY: asks for the number only.
        unsafe { (self.f.extensions)(object, ptr::null(), &raw mut count, ptr::null_mut()) };
        let mut list = vec![Extension { name: [0; 256], version: 0 }; count.min(4096) as usize];
        let mut count = list.len() as u32;
        // SAFETY: the list is as long as said.
        unsafe { (self.f.extensions)(object, ptr::null(), &raw mut count, list.as_mut_ptr()) };
        list.truncate(count as usize);
        list.iter().any(|e| CStr::from_bytes_until_nul(&e.name).is_ok_and(|known| known == name))
    }
}
