//! OptiX, the ray tracer of NVIDIA's driver: a geometry of triangles, programs for the card, and a launch over rays.
//!
//! Interface 41 is spoken, that of OptiX 7.2, which drivers serve from branch 455 on, by its release notes. Everything is left to
//! the end of the process.

mod types;

use std::ffi::CStr;
use std::ptr;

use super::cuda::{Context, Failed, Memory};
use super::{Absent, Library, text};
use types::*;

const LIBRARY: &str = if cfg!(windows) { "nvoptix.dll" } else { "libnvoptix.so.1" };

/// Most bytes that are taken of what the compiler says.
const LOG: usize = 1024;

/// OptiX on a CUDA context.
pub(crate) struct Tracer<'a> {
    f: Functions,
    card: &'a Context<'a>,
    context: Object,
}

/// Programs that OptiX has compiled and linked.
pub(crate) struct Programs<'a> {
    pipeline: Object,
    /// A record each for the start, the miss and the hit.
    records: Memory<'a>,
}

/// Triangles that rays can go through.
pub(crate) struct Geometry<'a> {
    /// What programs know it by.
    pub(crate) handle: u64,
    _memory: Memory<'a>,
}

/// What the compiler says about a call.
struct Log {
    bytes: [u8; LOG],
    length: usize,
}

impl Log {
    fn new() -> Self {
        Self { bytes: [0; LOG], length: LOG }
    }
}

/// Loads the library: from where the system has its own, in Windows else from the folder of the card's driver.
fn library() -> Result<Library, Absent> {
    let first = Library::open(&[LIBRARY]).map_err(Absent::Library);
    #[cfg(windows)]
    if first.is_err() {
        let found = crate::windows::api::devices::beside_opengl(LIBRARY).into_iter();
        let mut found = found.filter_map(|path| Library::open(&[&path]).ok());
        return found.next().map_or(first, Ok);
    }
    first
}

impl Functions {
    fn load() -> Result<Self, Absent> {
        let library = library()?;
        // SAFETY: the type is that of the header.
        let query = unsafe { library.function::<Query>(c"optixQueryFunctionTable") };
        let query = query.ok_or_else(|| Absent::Library("OptiX has no optixQueryFunctionTable".into()))?;
        let mut table = [ptr::null_mut(); TABLE];
        // SAFETY: no options; the table is as long as said.
        let code =
            unsafe { query(INTERFACE, 0, ptr::null(), ptr::null(), table.as_mut_ptr(), size_of_val(&table)) };
        if code == OTHER_INTERFACE {
            return Err(Absent::Unable(
                "this driver's OptiX does not serve interface 41 (OptiX 7.2), which came with drivers of branch 455"
                    .into(),
            ));
        }
        if code != 0 {
            return Err(Absent::Call(format!("optixQueryFunctionTable gives {code}")));
        }
        if let Some(place) = USED.iter().find(|place| table[**place].is_null()) {
            return Err(Absent::Call(format!("OptiX's table has nothing at {place}")));
        }
        // SAFETY: the functions that are used are there, and the header has them at these places.
        Ok(unsafe { std::mem::transmute::<[Object; TABLE], Functions>(table) })
    }

    #[inline(never)] // it is called often and seldom has anything to say
    fn checked(&self, what: &str, code: Code, log: Option<&Log>) -> Result<(), Absent> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it answers with a constant text or null.
        let name = unsafe { (self.error_name)(code) };
        // SAFETY: it ends with NUL.
        let name =
            if name.is_null() { "no name".into() } else { unsafe { CStr::from_ptr(name) }.to_string_lossy() };
        let mut told = format!("{what} gives {code} ({name})");
        for line in log.map(|log| text(&log.bytes)).unwrap_or_default().lines() {
            told.push_str("; ");
            told.push_str(line.trim());
        }
        Err(if code == NOT_SUPPORTED { Absent::Unable(told) } else { Absent::Call(told) })
    }
}

impl From<Failed> for Absent {
    fn from(failed: Failed) -> Self {
        Self::Call(failed.text)
    }
}

impl<'a> Tracer<'a> {
    /// Starts OptiX on the context of a card, which must be current and stay so.
    pub(crate) fn open(card: &'a Context<'a>) -> Result<Self, Absent> {
        let f = Functions::load()?;
        let options =
            ContextOptions { log: ptr::null_mut(), log_data: ptr::null_mut(), log_level: 0, validation: 0 };
        let mut context = ptr::null_mut();
        // SAFETY: here and below the structures have the header's layout, asserted above, and live as long as the calls.
        let code = unsafe { (f.context)(card.object, &raw const options, &raw mut context) };
        f.checked("optixDeviceContextCreate", code, None)?;
        // Else it keeps what it compiled in a file, and does not compile it the next time. Whether it obeys decides nothing.
        // SAFETY: as above.
        unsafe { (f.cache)(context, 0) };
        Ok(Self { f, card, context })
    }

    /// Compiles PTX for the card and links its three programs, for the start, the miss and the hit of rays, which carry one
    /// word; `parameters` is the variable that a launch sets.
    pub(crate) fn programs(
        &self,
        ptx: &CStr,
        parameters: &CStr,
        names: [&CStr; 3],
    ) -> Result<Programs<'a>, Absent> {
        let options = PipelineOptions {
            motion: 0,
            graph: ONE_GEOMETRY,
            payload: 1,
            attributes: 2, // the least: where a triangle was hit
            exceptions: 0,
            parameters: parameters.as_ptr(),
            primitives: ONLY_TRIANGLES,
        };
        let module = self.module(ptx, &options)?;
        let group = |n: usize| Group {
            kind: KINDS[n],
            flags: 0,
            module,
            name: names[n].as_ptr(),
            others: [ptr::null_mut(); 4],
        };
        let (wanted, mut groups) = ([group(0), group(1), group(2)], [ptr::null_mut(); 3]);
        let (mut log, none) = (Log::new(), 0);
        let (text, length) = (log.bytes.as_mut_ptr(), &raw mut log.length);
        let (first, answer) = (wanted.as_ptr(), groups.as_mut_ptr());
        // SAFETY: three groups and three answers; the log is as long as said.
        let code = unsafe { (self.f.groups)(self.context, first, 3, &raw const none, text, length, answer) };
        self.f.checked("optixProgramGroupCreate", code, Some(&log))?;
        let link = LinkOptions { depth: 1, debug: NO_DEBUG };
        let (mut log, mut pipeline) = (Log::new(), ptr::null_mut());
        let (text, length) = (log.bytes.as_mut_ptr(), &raw mut log.length);
        let (options, link, answer) = (&raw const options, &raw const link, &raw mut pipeline);
        // SAFETY: as above.
        let code = unsafe {
            (self.f.pipeline)(self.context, options, link, groups.as_ptr(), 3, text, length, answer)
        };
        self.f.checked("optixPipelineCreate", code, Some(&log))?;
        Ok(Programs { pipeline, records: self.records(groups)? })
    }

    fn module(&self, ptx: &CStr, pipeline: &PipelineOptions) -> Result<Object, Absent> {
        let options = ModuleOptions {
            registers: 0,
            optimisation: 0,
            debug: NO_DEBUG,
            bound: ptr::null(),
            bound_count: 0,
        };
        let (mut log, mut module) = (Log::new(), ptr::null_mut());
        let (text, length) = (log.bytes.as_mut_ptr(), &raw mut log.length);
        let (options, size) = (&raw const options, ptx.to_bytes().len());
        // SAFETY: the text is as long as said and ends with NUL; the log is as long as said.
        let code = unsafe {
            (self.f.module)(
                self.context,
                options,
                pipeline,
                ptx.as_ptr(),
                size,
                text,
                length,
                &raw mut module,
            )
        };
        self.f.checked("optixModuleCreateFromPTX", code, Some(&log)).map(|()| module)
    }

    /// A record for each group, on the card.
    fn records(&self, groups: [Object; 3]) -> Result<Memory<'a>, Absent> {
        /// Aligned as `OPTIX_SBT_RECORD_ALIGNMENT` says.
        #[repr(C, align(16))]
        struct Heads([u64; 3 * RECORD / 8]);
        let mut heads = Heads([0; 3 * RECORD / 8]);
        for (group, head) in groups.into_iter().zip(heads.0.chunks_exact_mut(RECORD / 8)) {
            // SAFETY: it writes as many bytes as a record has.
            let code = unsafe { (self.f.header)(group, head.as_mut_ptr().cast()) };
            self.f.checked("optixSbtRecordPackHeader", code, None)?;
        }
        let records = self.card.allocate(size_of_val(&heads))?;
        records.write(&heads.0)?;
        Ok(records)
    }

    /// Builds what rays go through: three vertices of three numbers for each triangle, which are counted from 0.
    pub(crate) fn geometry(&self, vertices: &[f32]) -> Result<Geometry<'a>, Absent> {
        let corners = self.card.allocate(size_of_val(vertices))?;
        corners.write(vertices)?;
        let (address, flags) = (corners.address(), NO_ANY_HIT);
        let input = Input {
            kind: TRIANGLES,
            vertices: &raw const address,
            count: (vertices.len() / 3) as u32,
            format: FLOAT3,
            stride: VERTEX as u32,
            indices: 0,
            index_numbers: [0; 3],
            transform: 0,
            flags: &raw const flags,
            records: 1,
            offsets: 0,
            rest: [0; 4],
            union: [0; 116],
        };
        let options = BuildOptions { flags: 0, operation: BUILD, keys: 0, motion: 0, times: [0.0; 2] };
        let (mut sizes, mut handle) = (Sizes::default(), 0);
        let (options, input) = (&raw const options, &raw const input);
        // SAFETY: one input; the sizes take the answer.
        let code = unsafe { (self.f.sizes)(self.context, options, input, 1, &raw mut sizes) };
        self.f.checked("optixAccelComputeMemoryUsage", code, None)?;
        // CUDA aligns to 256 bytes, more than the 128 that are asked for.
        let (temporary, memory) =
            (self.card.allocate(sizes.temporary.max(1))?, self.card.allocate(sizes.output)?);
        let (near, far) = ((temporary.address(), sizes.temporary), (memory.address(), sizes.output));
        // SAFETY: both memories are as long as said; nothing is asked about the result.
        let code = unsafe {
            let answer = &raw mut handle;
            let (context, stream) = (self.context, ptr::null_mut());
            (self.f.build)(
                context,
                stream,
                options,
                input,
                1,
                near.0,
                near.1,
                far.0,
                far.1,
                answer,
                ptr::null(),
                0,
            )
        };
        self.f.checked("optixAccelBuild", code, None)?;
        self.card.wait()?;
        Ok(Geometry { handle, _memory: memory })
    }

    /// Runs the programs for `count` rays and waits for them.
    pub(crate) fn launch(
        &self,
        programs: &Programs<'_>,
        parameters: &[u64],
        count: u32,
    ) -> Result<(), Absent> {
        let memory = self.card.allocate(size_of_val(parameters))?;
        memory.write(parameters)?;
        let (base, one) = (programs.records.address(), [RECORD as u32, 1]);
        let records = Records {
            generation: base,
            miss: base + RECORD as u64,
            miss_counts: one,
            hit: base + 2 * RECORD as u64,
            hit_counts: one,
            ..Records::default()
        };
        let (place, size) = (memory.address(), size_of_val(parameters));
        // SAFETY: the parameters are as long as said; the records are on the card.
        let code = unsafe {
            let stream = ptr::null_mut();
            (self.f.launch)(programs.pipeline, stream, place, size, &raw const records, count, 1, 1)
        };
        self.f.checked("optixLaunch", code, None)?;
        Ok(self.card.wait()?)
    }
}
