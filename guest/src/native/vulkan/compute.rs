//! One compute shader on one device: buffers, pipeline, commands, and the wait for their end.

use std::ptr;

use super::types::{
    AllocateInfo, Barrier, BeginInfo, Binding, BufferInfo, BufferRange, CommandsInfo, DeviceInfo, FenceInfo,
    LayoutInfo, Memory, MemoryType, PipelineInfo, PoolInfo, PoolSize, PushRange, QueueFamily, QueueInfo,
    Region, Requirements, SetInfo, SetLayoutInfo, SetPoolInfo, ShaderInfo, StageInfo, SubmitInfo, WriteSet,
    head,
};
use super::{Device, Functions, Handle, Object, Vulkan, checked};

const QUEUE_COMPUTE: u32 = 2;
const MEMORY_DEVICE_LOCAL: u32 = 1;
const MEMORY_VISIBLE_COHERENT: u32 = 2 | 4;
const USAGE_TRANSFER: u32 = 1 | 2;
const USAGE_STORAGE: u32 = 0x20;
const DESCRIPTOR_STORAGE_BUFFER: u32 = 7;
const STAGE_COMPUTE: u32 = 0x20;
const WHOLE_SIZE: u64 = u64::MAX;

/// How long the shader may run, in nanoseconds; the software renderer needs some milliseconds.
const FENCE_LIMIT: u64 = 20_000_000_000;

impl Vulkan {
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
