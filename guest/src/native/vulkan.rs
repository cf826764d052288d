//! Vulkan: which devices there are, and one compute shader on one of them.
//!
//! Types, numbers and functions are those of the Vulkan specification (version 1.1, and VK_EXT_pci_bus_info). Objects
//! are left to the end of the process, which follows at once.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use super::{Library, functions, text};

type Handle = u64; // a non-dispatchable object
type Object = *mut c_void; // a dispatchable one
type Code = i32;

const LIBRARY: &[&str] = if cfg!(windows) { &["vulkan-1.dll"] } else { &["libvulkan.so.1"] };
const VERSION_1_1: u32 = 1 << 22 | 1 << 12;
const PCI_BUS_INFO: &CStr = c"VK_EXT_pci_bus_info";

const KIND_CPU: u32 = 4;
const QUEUE_COMPUTE: u32 = 2;
const MEMORY_DEVICE_LOCAL: u32 = 1;
const MEMORY_VISIBLE_COHERENT: u32 = 2 | 4;
const USAGE_TRANSFER: u32 = 1 | 2;
const USAGE_STORAGE: u32 = 0x20;
const DESCRIPTOR_STORAGE_BUFFER: u32 = 7;
const STAGE_COMPUTE: u32 = 0x20;
const WHOLE_SIZE: u64 = u64::MAX;
const TIMEOUT: Code = 2;

/// How long the shader may run, in nanoseconds; the software renderer needs some milliseconds.
const FENCE_LIMIT: u64 = 20_000_000_000;

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

/// `VkStructureType` and `pNext`, with which most structures begin.
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    kind: u32,
    next: *const c_void,
}

const fn head(kind: u32) -> Head {
    Head { kind, next: ptr::null() }
}

#[repr(C)]
struct ApplicationInfo {
    head: Head,
    name: *const c_char,
    version: u32,
    engine: *const c_char,
    engine_version: u32,
    api: u32,
}

#[repr(C)]
struct InstanceInfo {
    head: Head,
    flags: u32,
    application: *const ApplicationInfo,
    layers: u32,
    layer_names: *const *const c_char,
    extensions: u32,
    extension_names: *const *const c_char,
}

#[repr(C)]
struct Properties2 {
    kind: u32,
    next: *mut c_void,
    api: u32,
    driver: u32,
    vendor: u32,
    device: u32,
    device_kind: u32,
    name: [u8; 256],
    uuid: [u8; 16],
    limits: [u64; 63],
    sparse: [u32; 5],
}

/// `VkPhysicalDevicePCIBusInfoPropertiesEXT`.
#[repr(C)]
struct PciInfo {
    kind: u32,
    next: *mut c_void,
    domain: u32,
    bus: u32,
    device: u32,
    function: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Extension {
    name: [u8; 256],
    version: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct QueueFamily {
    flags: u32,
    count: u32,
    timestamp_bits: u32,
    granularity: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryType {
    flags: u32,
    heap: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heap {
    size: u64,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Memory {
    type_count: u32,
    types: [MemoryType; 32],
    heap_count: u32,
    heaps: [Heap; 16],
}

#[repr(C)]
struct QueueInfo {
    head: Head,
    flags: u32,
    family: u32,
    count: u32,
    priorities: *const f32,
}

#[repr(C)]
struct DeviceInfo {
    head: Head,
    flags: u32,
    queues: u32,
    queue_infos: *const QueueInfo,
    layers: u32,
    layer_names: *const *const c_char,
    extensions: u32,
    extension_names: *const *const c_char,
    features: *const c_void,
}

#[repr(C)]
struct BufferInfo {
    head: Head,
    flags: u32,
    size: u64,
    usage: u32,
    sharing: u32,
    families: u32,
    family_indices: *const u32,
}

#[repr(C)]
#[derive(Default)]
struct Requirements {
    size: u64,
    alignment: u64,
    types: u32,
}

#[repr(C)]
struct AllocateInfo {
    head: Head,
    size: u64,
    kind: u32,
}

#[repr(C)]
struct ShaderInfo {
    head: Head,
    flags: u32,
    size: usize,
    code: *const u32,
}

#[repr(C)]
struct Binding {
    binding: u32,
    kind: u32,
    count: u32,
    stages: u32,
    samplers: *const c_void,
}

#[repr(C)]
struct SetLayoutInfo {
    head: Head,
    flags: u32,
    count: u32,
    bindings: *const Binding,
}

#[repr(C)]
struct PushRange {
    stages: u32,
    offset: u32,
    size: u32,
}

#[repr(C)]
struct LayoutInfo {
    head: Head,
    flags: u32,
    sets: u32,
    set_layouts: *const Handle,
    ranges: u32,
    push_ranges: *const PushRange,
}

#[repr(C)]
struct StageInfo {
    head: Head,
    flags: u32,
    stage: u32,
    module: Handle,
    name: *const c_char,
    specialization: *const c_void,
}

#[repr(C)]
struct PipelineInfo {
    head: Head,
    flags: u32,
    stage: StageInfo,
    layout: Handle,
    base: Handle,
    base_index: i32,
}

#[repr(C)]
struct PoolSize {
    kind: u32,
    count: u32,
}

#[repr(C)]
struct SetPoolInfo {
    head: Head,
    flags: u32,
    max_sets: u32,
    sizes: u32,
    pool_sizes: *const PoolSize,
}

#[repr(C)]
struct SetInfo {
    head: Head,
    pool: Handle,
    count: u32,
    layouts: *const Handle,
}

#[repr(C)]
struct BufferRange {
    buffer: Handle,
    offset: u64,
    range: u64,
}

#[repr(C)]
struct WriteSet {
    head: Head,
    set: Handle,
    binding: u32,
    element: u32,
    count: u32,
    kind: u32,
    images: *const c_void,
    buffers: *const BufferRange,
    texels: *const c_void,
}

#[repr(C)]
struct PoolInfo {
    head: Head,
    flags: u32,
    family: u32,
}

#[repr(C)]
struct CommandsInfo {
    head: Head,
    pool: Handle,
    level: u32,
    count: u32,
}

#[repr(C)]
struct BeginInfo {
    head: Head,
    flags: u32,
    inheritance: *const c_void,
}

#[repr(C)]
struct Region {
    from: u64,
    to: u64,
    size: u64,
}

#[repr(C)]
struct Barrier {
    head: Head,
    from: u32,
    to: u32,
}

#[repr(C)]
struct FenceInfo {
    head: Head,
    flags: u32,
}

#[repr(C)]
struct SubmitInfo {
    head: Head,
    waits: u32,
    wait_semaphores: *const Handle,
    wait_stages: *const u32,
    commands: u32,
    command_buffers: *const Object,
    signals: u32,
    signal_semaphores: *const Handle,
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

    /// Lets the shader `code` work on `words`, which go through the device's own memory, and returns what it left.
    /// The shader gets the number of words and `seed` as push constants, and 64 words per group.
    pub(crate) fn compute(
        &self,
        device: &Device,
        code: &[u32],
        words: &[u32],
        seed: u32,
    ) -> Result<Vec<u32>, String> {
        let family = self.compute_family(device)?;
        let open = Open::new(self, device, family)?;
        let bytes = size_of_val(words) as u64;
        let staging = open.buffer(bytes, USAGE_TRANSFER, MEMORY_VISIBLE_COHERENT)?;
        let local = open.buffer(bytes, USAGE_TRANSFER | USAGE_STORAGE, MEMORY_DEVICE_LOCAL)?;
        let place = open.map(staging.1)?;
        // SAFETY: the mapping has room for `bytes`, and nothing else uses it yet.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), place, words.len()) };
        let (pipeline, layout, set) = open.pipeline(code, local.0)?;
        let commands = open.commands(family)?;
        let push = [words.len() as u32, seed];
        open.record(commands, (staging.0, local.0, bytes), (pipeline, layout, set), push)?;
        open.submit(commands)?;
        let mut answer = vec![0_u32; words.len()];
        // SAFETY: the device has finished; the memory is coherent.
        unsafe { ptr::copy_nonoverlapping(place, answer.as_mut_ptr(), answer.len()) };
        Ok(answer)
    }

    fn compute_family(&self, device: &Device) -> Result<u32, String> {
        let mut families = [QueueFamily::default(); 32];
        let mut count = families.len() as u32;
        // SAFETY: the array is as long as said.
        unsafe { (self.f.queues)(device.object, &raw mut count, families.as_mut_ptr()) };
        let families = &families[..(count as usize).min(32)];
        let found = families.iter().position(|family| family.flags & QUEUE_COMPUTE != 0 && family.count > 0);
        found.map(|index| index as u32).ok_or_else(|| "the device has no queue that computes".into())
    }
}

/// A device in use.
struct Open<'a> {
    f: &'a Functions,
    device: Object,
    queue: Object,
    memory: Memory,
}

impl<'a> Open<'a> {
    fn new(vulkan: &'a Vulkan, physical: &Device, family: u32) -> Result<Self, String> {
        let f = &vulkan.f;
        let priority = 1.0_f32;
        let queue_info =
            QueueInfo { head: head(2), flags: 0, family, count: 1, priorities: &raw const priority };
        let info = DeviceInfo {
            head: head(3),
            flags: 0,
            queues: 1,
            queue_infos: &raw const queue_info,
            layers: 0,
            layer_names: ptr::null(),
            extensions: 0,
            extension_names: ptr::null(),
            features: ptr::null(),
        };
        let (mut device, mut queue, mut memory) = (ptr::null_mut(), ptr::null_mut(), Memory::default());
        // SAFETY: all pointers live as long as the calls; the queue was asked for above.
        unsafe {
            let code = (f.create_device)(physical.object, &raw const info, ptr::null(), &raw mut device);
            checked("vkCreateDevice", code)?;
            (f.queue)(device, family, 0, &raw mut queue);
            (f.memory)(physical.object, &raw mut memory);
        }
        Ok(Self { f, device, queue, memory })
    }

    /// A buffer with memory of a kind behind it.
    fn buffer(&self, size: u64, usage: u32, wanted: u32) -> Result<(Handle, Handle), String> {
        let info = BufferInfo {
            head: head(12),
            flags: 0,
            size,
            usage,
            sharing: 0,
            families: 0,
            family_indices: ptr::null(),
        };
        let (mut buffer, mut memory, mut needs) = (0, 0, Requirements::default());
        // SAFETY: all pointers live as long as the calls; the buffer exists where it is asked about.
        unsafe {
            let code = (self.f.create_buffer)(self.device, &raw const info, ptr::null(), &raw mut buffer);
            checked("vkCreateBuffer", code)?;
            (self.f.requirements)(self.device, buffer, &raw mut needs);
            let types = &self.memory.types[..(self.memory.type_count as usize).min(32)];
            let fits = |(index, kind): (usize, &MemoryType)| {
                needs.types >> index & 1 == 1 && kind.flags & wanted == wanted
            };
            let kind =
                types.iter().enumerate().position(fits).ok_or("no memory of the kind that is needed")? as u32;
            let info = AllocateInfo { head: head(5), size: needs.size, kind };
            let code = (self.f.allocate)(self.device, &raw const info, ptr::null(), &raw mut memory);
            checked("vkAllocateMemory", code)?;
            checked("vkBindBufferMemory", (self.f.bind)(self.device, buffer, memory, 0))?;
        }
        Ok((buffer, memory))
    }

    fn map(&self, memory: Handle) -> Result<*mut u32, String> {
        let mut place = ptr::null_mut();
        // SAFETY: the memory can be mapped and is mapped once.
        let code = unsafe { (self.f.map)(self.device, memory, 0, WHOLE_SIZE, 0, &raw mut place) };
        checked("vkMapMemory", code).map(|()| place.cast())
    }

    /// Pipeline, its layout, and a set that binds `buffer`.
    fn pipeline(&self, code: &[u32], buffer: Handle) -> Result<(Handle, Handle, Handle), String> {
        let (f, device) = (self.f, self.device);
        let shader_info =
            ShaderInfo { head: head(16), flags: 0, size: size_of_val(code), code: code.as_ptr() };
        let binding = Binding {
            binding: 0,
            kind: DESCRIPTOR_STORAGE_BUFFER,
            count: 1,
            stages: STAGE_COMPUTE,
            samplers: ptr::null(),
        };
        let set_info = SetLayoutInfo { head: head(32), flags: 0, count: 1, bindings: &raw const binding };
        let range = PushRange { stages: STAGE_COMPUTE, offset: 0, size: 8 };
        let (mut shader, mut set_layout, mut layout, mut pipeline) = (0, 0, 0, 0);
        // SAFETY: all pointers live as long as the calls.
        unsafe {
            let code = (f.create_shader)(device, &raw const shader_info, ptr::null(), &raw mut shader);
            checked("vkCreateShaderModule", code)?;
            let code = (f.create_set_layout)(device, &raw const set_info, ptr::null(), &raw mut set_layout);
            checked("vkCreateDescriptorSetLayout", code)?;
            let info = LayoutInfo {
                head: head(30),
                flags: 0,
                sets: 1,
                set_layouts: &raw const set_layout,
                ranges: 1,
                push_ranges: &raw const range,
            };
            let code = (f.create_layout)(device, &raw const info, ptr::null(), &raw mut layout);
            checked("vkCreatePipelineLayout", code)?;
            let stage = StageInfo {
                head: head(18),
                flags: 0,
                stage: STAGE_COMPUTE,
                module: shader,
                name: c"main".as_ptr(),
                specialization: ptr::null(),
            };
            let info = PipelineInfo { head: head(29), flags: 0, stage, layout, base: 0, base_index: -1 };
            let code = (f.create_pipelines)(device, 0, 1, &raw const info, ptr::null(), &raw mut pipeline);
            checked("vkCreateComputePipelines", code)?;
        }
        Ok((pipeline, layout, self.set(set_layout, buffer)?))
    }

    fn set(&self, layout: Handle, buffer: Handle) -> Result<Handle, String> {
        let (f, device) = (self.f, self.device);
        let size = PoolSize { kind: DESCRIPTOR_STORAGE_BUFFER, count: 1 };
        let info =
            SetPoolInfo { head: head(33), flags: 0, max_sets: 1, sizes: 1, pool_sizes: &raw const size };
        let (mut pool, mut set) = (0, 0);
        let range = BufferRange { buffer, offset: 0, range: WHOLE_SIZE };
        // SAFETY: all pointers live as long as the calls.
        unsafe {
            let code = (f.create_set_pool)(device, &raw const info, ptr::null(), &raw mut pool);
            checked("vkCreateDescriptorPool", code)?;
            let info = SetInfo { head: head(34), pool, count: 1, layouts: &raw const layout };
            let code = (f.allocate_sets)(device, &raw const info, &raw mut set);
            checked("vkAllocateDescriptorSets", code)?;
            let write = WriteSet {
                head: head(35),
                set,
                binding: 0,
                element: 0,
                count: 1,
                kind: DESCRIPTOR_STORAGE_BUFFER,
                images: ptr::null(),
                buffers: &raw const range,
                texels: ptr::null(),
            };
            (f.update_sets)(device, 1, &raw const write, 0, ptr::null());
        }
        Ok(set)
    }

    fn commands(&self, family: u32) -> Result<Object, String> {
        let info = PoolInfo { head: head(39), flags: 0, family };
        let (mut pool, mut commands) = (0, ptr::null_mut());
        // SAFETY: all pointers live as long as the calls.
        unsafe {
            let code = (self.f.create_pool)(self.device, &raw const info, ptr::null(), &raw mut pool);
            checked("vkCreateCommandPool", code)?;
            let info = CommandsInfo { head: head(40), pool, level: 0, count: 1 };
            let code = (self.f.allocate_commands)(self.device, &raw const info, &raw mut commands);
            checked("vkAllocateCommandBuffers", code)?;
        }
        Ok(commands)
    }

    /// To the device, compute, and back, with a barrier after each step.
    fn record(
        &self,
        commands: Object,
        (staging, local, bytes): (Handle, Handle, u64),
        (pipeline, layout, set): (Handle, Handle, Handle),
        push: [u32; 2],
    ) -> Result<(), String> {
        const TRANSFER: (u32, u32, u32) = (0x1000, 0x800, 0x1000); // stage, read, write
        const SHADER: (u32, u32, u32) = (0x800, 0x20, 0x40);
        const HOST: (u32, u32, u32) = (0x4000, 0x2000, 0x4000);
        let f = self.f;
        let begin = BeginInfo { head: head(42), flags: 1, inheritance: ptr::null() };
        let region = Region { from: 0, to: 0, size: bytes };
        let barrier = |from: (u32, u32, u32), to: (u32, u32, u32)| {
            let barrier = Barrier { head: head(46), from: from.2, to: to.1 | to.2 };
            // SAFETY: the commands are being recorded; the barrier lives as long as the call.
            unsafe {
                (f.barrier)(commands, from.0, to.0, 0, 1, &raw const barrier, 0, ptr::null(), 0, ptr::null());
            }
        };
        let groups = push[0].div_ceil(64);
        // SAFETY: all pointers live as long as the calls, which are the recording of one buffer.
        unsafe {
            checked("vkBeginCommandBuffer", (f.begin)(commands, &raw const begin))?;
            (f.copy)(commands, staging, local, 1, &raw const region);
            barrier(TRANSFER, SHADER);
            (f.bind_pipeline)(commands, 1, pipeline);
            (f.bind_sets)(commands, 1, layout, 0, 1, &raw const set, 0, ptr::null());
            (f.push)(commands, layout, STAGE_COMPUTE, 0, 8, push.as_ptr().cast());
            (f.dispatch)(commands, groups, 1, 1);
            barrier(SHADER, TRANSFER);
            (f.copy)(commands, local, staging, 1, &raw const region);
            barrier(TRANSFER, HOST);
            checked("vkEndCommandBuffer", (f.end)(commands))
        }
    }

    fn submit(&self, commands: Object) -> Result<(), String> {
        let fence_info = FenceInfo { head: head(8), flags: 0 };
        let info = SubmitInfo {
            head: head(4),
            waits: 0,
            wait_semaphores: ptr::null(),
            wait_stages: ptr::null(),
            commands: 1,
            command_buffers: &raw const commands,
            signals: 0,
            signal_semaphores: ptr::null(),
        };
        let mut fence = 0;
        // SAFETY: all pointers live as long as the calls.
        unsafe {
            let code = (self.f.create_fence)(self.device, &raw const fence_info, ptr::null(), &raw mut fence);
            checked("vkCreateFence", code)?;
            checked("vkQueueSubmit", (self.f.submit)(self.queue, 1, &raw const info, fence))?;
            checked("vkWaitForFences", (self.f.wait)(self.device, 1, &raw const fence, 1, FENCE_LIMIT))
        }
    }
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
