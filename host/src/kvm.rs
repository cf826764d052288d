//! Whether KVM really runs guest code here.
//!
//! A `/dev/kvm` that opens, creates VMs and even runs `hlt` may still be unable to run a guest: software KVM (`kvm_pvm`)
//! emulates a few instructions and gives up on the first `pxor`. So a vCPU in long mode runs one, then a loop of a
//! million rounds, in a child that cannot hang us. What happens decides, never how long it took: a good KVM nested in an
//! emulated CPU needs a quarter of a second for its first vCPU.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::Roots;
use crate::raw::{GuestMemory, in_child, tell};
use crate::state::StateDir;

/// For a vCPU that never comes back. A working KVM, nested in an emulated CPU on a busy machine, was seen to need 3.7 s.
const NEVER_RETURNS: Duration = Duration::from_secs(20);

/// Where the probe keeps its tables and code in guest memory.
const PML4: usize = 0x3000;
const PDPT: usize = 0x4000;
const PD: usize = 0x5000;
const CODE: usize = 0x1000;

/// What a vCPU is asked to run, in this order.
const STAGES: &[(&str, &[u8])] = &[
    // pxor xmm0,xmm0; hlt
    ("an SSE instruction in long mode", &[0x66, 0x0f, 0xef, 0xc0, 0xf4]),
    // mov ecx,0x100000; loop $; hlt
    ("a loop of a million rounds", &[0xb9, 0x00, 0x00, 0x10, 0x00, 0xe2, 0xfe, 0xf4]),
];

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum KvmVerdict {
    /// Guest code ran.
    Usable {
        /// Kernel module, for example `kvm_intel`.
        module: String,
        /// Time of the whole probe, in milliseconds. For people; nothing is decided by it.
        ms: u64,
    },
    /// `/dev/kvm` is there and opens, but cannot run a guest.
    Broken {
        /// Kernel module, for example `kvm_pvm`.
        module: String,
        /// What the vCPU did instead.
        what: String,
    },
    /// There is no `/dev/kvm`, or this user may not open it.
    Absent {
        /// Why, and what to do.
        why: String,
    },
}

impl KvmVerdict {
    /// Whether a guest can run under KVM.
    pub fn is_usable(&self) -> bool {
        matches!(self, KvmVerdict::Usable { .. })
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvmVerdict::Usable { module, ms } => write!(f, "KVM runs guest code ({module}, probe {ms} ms)"),
            KvmVerdict::Broken { module, what } => {
                write!(f, "/dev/kvm opens but cannot run a guest ({module}: {what})")
            }
            KvmVerdict::Absent { why } => f.write_str(why),
        }
    }
}

/// The verdict on this machine, from the state directory where this boot's kernel module was already judged.
pub fn probe() -> KvmVerdict {
    match StateDir::open_default() {
        Ok(state) => probe_cached(&Roots::real(), &state),
        Err(_) => probe_now(&Roots::real()),
    }
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    module: String,
    verdict: KvmVerdict,
}

/// The verdict of an earlier probe of this boot and module, else a new one, which is kept.
pub fn probe_cached(roots: &Roots, state: &StateDir) -> KvmVerdict {
    let (boot_id, module) = (roots.boot_id(), module_name(roots));
    let remembered: Option<Remembered> = state.remembered("kvm");
    // whether this user may open the device can change at any time, so that is asked anew
    if let Err(verdict) = open(roots) {
        return verdict;
    }
    if let Some(old) = remembered.filter(|old| old.boot_id == boot_id && old.module == module) {
        return old.verdict;
    }
    let (verdict, certain) = judge(roots);
    if certain {
        // a probe costs milliseconds: failing to keep its result is no reason to fail
        let _ = state.remember("kvm", &Remembered { boot_id, module, verdict: verdict.clone() });
    }
    verdict
}

/// Runs code in a vCPU now.
pub fn probe_now(roots: &Roots) -> KvmVerdict {
    judge(roots).0
}

/// The verdict, and whether it would be the same next time in this boot.
fn judge(roots: &Roots) -> (KvmVerdict, bool) {
    if let Err(verdict) = open(roots) {
        return (verdict, false);
    }
    let device = roots.dev.join("kvm");
    let module = module_name(roots);
    let started = Instant::now();
    let end = in_child(NEVER_RETURNS, |pipe| {
        tell(
            pipe,
            &run_stages(&device, pipe.try_clone().ok()).map_or_else(|what| what, |()| "usable".into()),
        );
    });
    let broken = |what: String| KvmVerdict::Broken { module: module.clone(), what };
    let end = match end {
        Ok(end) => end,
        Err(e) => return (broken(format!("the probe could not be started: {e}")), false),
    };
    let said = String::from_utf8_lossy(&end.said).into_owned();
    let (stages, last) = said.rsplit_once('\n').unwrap_or(("", &said));
    match (end.hangs, last) {
        (None, "usable") => {
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            (KvmVerdict::Usable { module, ms }, true)
        }
        (Some(_), _) => {
            let stage = stages.lines().last().unwrap_or("the set-up of a vCPU");
            (broken(format!("{stage} did not end in {} s", NEVER_RETURNS.as_secs())), true)
        }
        (None, "") => (broken("the probe died without a word".into()), false),
        (None, what) => (broken(what.into()), true),
    }
}

/// Whether the device opens at all, and if not, what a person can do.
fn open(roots: &Roots) -> Result<(), KvmVerdict> {
    let path = roots.dev.join("kvm");
    let why = match File::options().read(true).write(true).open(&path) {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => format!(
            "{} may not be opened by this user: add the user to the group kvm (sudo usermod -aG kvm $USER) and log in again",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => format!(
            "there is no {}: virtualisation is off in the firmware, or kvm_intel or kvm_amd is not loaded",
            path.display()
        ),
        Err(e) => format!("{} does not open: {e}", path.display()),
    };
    Err(KvmVerdict::Absent { why })
}

/// The module that does the work, for example `kvm_amd`; `kvm` where it is built in without a name.
fn module_name(roots: &Roots) -> String {
    let names = fs::read_dir(roots.sys.join("module")).map(|dir| {
        let mut names: Vec<String> = dir
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("kvm_"))
            .collect();
        names.sort();
        names
    });
    names.ok().filter(|names| !names.is_empty()).map_or_else(|| "kvm".into(), |names| names.join("+"))
}

/// In the child: every stage, each told before it starts. The error says what the vCPU did.
fn run_stages(device: &Path, mut progress: Option<File>) -> Result<(), String> {
    for (name, code) in STAGES {
        if let Some(pipe) = &mut progress {
            tell(pipe, &format!("{name}\n"));
        }
        run(device, code).map_err(|what| format!("{name} {what}"))?;
    }
    Ok(())
}

fn run(device: &Path, code: &[u8]) -> Result<(), String> {
    let kernel = |step: &'static str| move |e: kvm_ioctls::Error| format!("cannot start: {step} failed: {e}");
    let path = std::ffi::CString::new(device.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let kvm = Kvm::new_with_path(path).map_err(kernel("open"))?;
    let vm = kvm.create_vm().map_err(kernel("KVM_CREATE_VM"))?;
    let memory = prepared_memory(code).map_err(|e| format!("cannot start: no memory: {e}"))?;
    memory.attach(&vm).map_err(kernel("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(kernel("KVM_CREATE_VCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kernel("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(kernel("KVM_SET_CPUID2"))?;
    enter_long_mode(&vcpu).map_err(kernel("KVM_SET_SREGS"))?;
    loop {
        return match vcpu.run() {
            Ok(VcpuExit::Hlt) => Ok(()),
            Ok(VcpuExit::Intr) => continue,
            Ok(VcpuExit::InternalError) => Err("ends with KVM_EXIT_INTERNAL_ERROR".into()),
            Ok(VcpuExit::Shutdown) => Err("ends with a triple fault".into()),
            Ok(other) => Err(format!("ends with {other:?}")),
            Err(e) if e.errno() == libc::EINTR => continue,
            Err(e) => Err(format!("fails: {e}")),
        };
    }
}

/// One 2 MiB page maps guest memory onto itself; the code stands at `CODE`.
fn prepared_memory(code: &[u8]) -> io::Result<GuestMemory> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE_PAGE: u64 = 0x80;
    let mut memory = GuestMemory::new()?;
    memory.put(PML4, &(PDPT as u64 | PRESENT_WRITABLE).to_le_bytes());
    memory.put(PDPT, &(PD as u64 | PRESENT_WRITABLE).to_le_bytes());
    memory.put(PD, &(LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes());
    memory.put(CODE, code);
    Ok(memory)
}

/// Long mode with SSE switched on, flat segments, interrupts off.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_bindings::kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = kvm_bindings::kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4 as u64;
    sregs.cr4 |= 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
    sregs.cr0 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
    sregs.efer |= 0x500; // LME, LMA
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags, regs.rsp) = (CODE as u64, 2, 0x8000);
    vcpu.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_absent_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let verdict = probe_now(&Roots::under(dir.path()));
        assert!(
            matches!(&verdict, KvmVerdict::Absent { why } if why.contains("kvm_intel or kvm_amd")),
            "{verdict}"
        );
    }

    #[test]
    fn a_device_that_is_not_kvm_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::under(dir.path());
        fs::create_dir_all(roots.sys.join("module/kvm_fake")).unwrap();
        fs::create_dir_all(&roots.dev).unwrap();
        fs::write(roots.dev.join("kvm"), "").unwrap();
        let verdict = probe_now(&roots);
        assert!(matches!(&verdict, KvmVerdict::Broken { module, .. } if module == "kvm_fake"), "{verdict}");
    }

    /// On a machine without KVM, with a working one and with a broken one alike: the verdict comes, and comes again.
    #[test]
    fn the_verdict_on_this_machine_is_stable_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (roots, state) = (Roots::real(), StateDir::at(dir.path()));
        let first = probe_cached(&roots, &state);
        assert_eq!(first, probe_cached(&roots, &state));
        assert_eq!(first.is_usable(), probe_now(&roots).is_usable());
    }
}
