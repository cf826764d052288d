//! The only unsafe code here: a forked child with a limit, vfio's reset, guest memory for the KVM probe, taps, and local time.
//!
//! Why fork: a write to sysfs can hang in the kernel for ever (a driver that waits for its users), and then neither the
//! thread nor the process that made it ever ends. A child that hangs is left to the kernel, and we go on.

#![allow(
    unsafe_code,
    reason = "fork, ioctls, mmap for a vCPU and localtime_r have no safe wrapper in the crates used here"
)]

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// What became of a child.
#[derive(Debug)]
pub(crate) struct ChildEnd {
    /// What it said before it ended.
    pub(crate) said: Vec<u8>,
    /// The child's number where it had not ended within the limit. It was sent SIGKILL, and is not waited for.
    pub(crate) hangs: Option<u32>,
}

/// Runs `work` in a forked child and collects what it writes, at most for `limit`.
///
/// The child has no signals, no standard streams and no open files of ours: above all not our lock, which a child stuck
/// in the kernel would hold for ever. `work` should allocate little: another thread may have been inside a lock.
pub(crate) fn in_child(limit: Duration, work: impl FnOnce(&mut File)) -> io::Result<ChildEnd> {
    let null = high(OpenOptions::new().read(true).write(true).open("/dev/null")?)?;
    let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let write_end = high(write_end)?;
    // SAFETY: the child only makes system calls, runs `work`, and leaves by `_exit`
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => child(&null, &write_end, work),
        pid => pid,
    };
    drop((null, write_end));
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no process number"))?;
    collect(File::from(read_end), pid, limit)
}

/// Moves a descriptor out of the way of the numbers that the child gives away.
fn high(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 10)?)
}

fn child(null: &OwnedFd, write_end: &OwnedFd, work: impl FnOnce(&mut File)) -> ! {
    // SAFETY: plain system calls on descriptors that are open; nothing of the parent is used after close_range
    let mut pipe: File = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::setpgid(0, 0);
        for fd in 0..3 {
            libc::dup2(null.as_raw_fd(), fd);
        }
        libc::dup2(write_end.as_raw_fd(), 3);
        libc::syscall(libc::SYS_close_range, 4u32, u32::MAX, 0u32);
        FromRawFd::from_raw_fd(3)
    };
    let ended = catch_unwind(AssertUnwindSafe(|| work(&mut pipe)));
    // SAFETY: ends the child without running the parent's exit handlers
    unsafe { libc::_exit(i32::from(ended.is_err())) }
}

fn collect(mut pipe: File, pid: Pid, limit: Duration) -> io::Result<ChildEnd> {
    let deadline = Instant::now() + limit;
    let mut said = Vec::new();
    let mut chunk = [0u8; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let ready = match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => n > 0,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        if !ready {
            let _ = kill_process(pid, Signal::KILL);
            // it may end now, or be stuck in the kernel: both are fine, it is only not waited for
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            return Ok(ChildEnd { said, hangs: Some(pid.as_raw_nonzero().get().cast_unsigned()) });
        }
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    while let Err(rustix::io::Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
    Ok(ChildEnd { said, hangs: None })
}

/// Tells the parent; a parent that has gone away is no reason to stop.
pub(crate) fn tell(pipe: &mut File, text: &str) {
    let _ = pipe.write_all(text.as_bytes());
}

/// Resets a slot through vfio: the kernel does it only if everything that is reset with it belongs to these groups.
///
/// Fails with EBUSY while a VM has one of them. The requests and structures are those of `linux/vfio.h`.
pub(crate) fn vfio_hot_reset(container: &Path, groups: &[PathBuf], function: &CStr) -> io::Result<()> {
    const SET_IOMMU: libc::c_ulong = 0x3b66;
    const GROUP_SET_CONTAINER: libc::c_ulong = 0x3b68;
    const GROUP_GET_DEVICE_FD: libc::c_ulong = 0x3b6a;
    const DEVICE_PCI_HOT_RESET: libc::c_ulong = 0x3b71;
    const TYPE1_IOMMU: libc::c_ulong = 1;
    #[repr(C)]
    struct HotReset {
        argsz: u32,
        flags: u32,
        count: u32,
        groups: [i32; 8],
    }
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let container = open(container)?;
    let groups: Vec<File> = groups.iter().map(|path| open(path)).collect::<io::Result<_>>()?;
    let first = groups.first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut reset = HotReset { argsz: 0, flags: 0, count: 0, groups: [-1; 8] };
    if groups.len() > reset.groups.len() {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    reset.argsz = u32::try_from(size_of::<HotReset>()).unwrap_or(0);
    let done = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: every request gets what linux/vfio.h says: a pointer to an open descriptor, a number, a C string, or the
    // structure above, whose size it carries; the descriptor that comes back is ours alone
    unsafe {
        for (n, group) in groups.iter().enumerate() {
            let number = container.as_raw_fd();
            done(libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, &raw const number))?;
            reset.groups[n] = group.as_raw_fd();
            reset.count += 1;
        }
        done(libc::ioctl(container.as_raw_fd(), SET_IOMMU, TYPE1_IOMMU))?;
        let device = done(libc::ioctl(first.as_raw_fd(), GROUP_GET_DEVICE_FD, function.as_ptr()))?;
        let device = OwnedFd::from_raw_fd(device);
        done(libc::ioctl(device.as_raw_fd(), DEVICE_PCI_HOT_RESET, &raw mut reset))?;
    }
    Ok(())
}

/// The supplementary groups that the other end of a socket had when it connected.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 1024];
    let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(0);
    // SAFETY: the kernel writes at most `bytes` bytes into the buffer, which has as many, and says how many
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(usize::try_from(bytes).unwrap_or(0) / size_of::<u32>());
    Ok(groups)
}

/// Descriptor 3, which a service manager has opened for us.
pub(crate) fn first_passed_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number; the descriptor is taken over only if it is open, once, by who was told that it is there
    unsafe {
        match libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC) {
            0 => Ok(OwnedFd::from_raw_fd(3)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// 256 KiB of guest memory at guest address 0.
pub(crate) struct GuestMemory {
    start: *mut u8,
}

impl GuestMemory {
    /// Bytes.
    pub(crate) const SIZE: usize = 256 << 10;

    /// Zeroed memory, private to this process until it ends (a probe child does so soon).
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping touches nothing that exists
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                Self::SIZE,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )?
        };
        Ok(GuestMemory { start: start.cast() })
    }

    /// Copies `bytes` to a guest address; what would not fit is a mistake of the caller.
    pub(crate) fn put(&mut self, address: usize, bytes: &[u8]) {
        assert!(address + bytes.len() <= Self::SIZE, "the probe's code and tables fit its memory");
        // SAFETY: just checked to be inside the mapping; no vCPU runs while this borrow is held
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(address), bytes.len()) }
    }

    /// Gives the memory to a VM as its first slot.
    pub(crate) fn attach(&self, vm: &kvm_ioctls::VmFd) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: Self::SIZE as u64,
            userspace_addr: self.start as u64,
        };
        // SAFETY: the mapping is never unmapped, so it outlives the VM
        unsafe { vm.set_user_memory_region(region) }
    }
}

/// A moment in local time.
pub(crate) struct LocalTime {
    pub(crate) year: i32,
    pub(crate) month: i32,
    pub(crate) day: i32,
    pub(crate) hour: i32,
    pub(crate) minute: i32,
}

/// Local time of a moment in seconds since 1970.
pub(crate) fn local_time(seconds: u64) -> LocalTime {
    let moment: libc::time_t = seconds.try_into().unwrap_or(0);
    // SAFETY: localtime_r writes only to the struct it is given, for which all zeroes is a valid value
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const moment, &raw mut tm);
        tm
    };
    LocalTime {
        year: tm.tm_year + 1900,
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
    }
}

/// Makes an opened `/dev/net/tun` the tap of that name, for whole Ethernet frames with offloads.
pub(crate) fn attach_tap(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    // the last byte stays zero
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq, which this is
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_says_its_word_and_ends() {
        let end = in_child(Duration::from_secs(10), |pipe| tell(pipe, "done")).unwrap();
        assert_eq!((end.said.as_slice(), end.hangs), (&b"done"[..], None));
    }

    #[test]
    fn a_child_that_hangs_is_left_behind() {
        let started = Instant::now();
        let end = in_child(Duration::from_millis(50), |pipe| {
            tell(pipe, "began");
            std::thread::sleep(Duration::from_secs(60));
        });
        let end = end.unwrap();
        assert_eq!(end.said, b"began");
        assert!(end.hangs.is_some());
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_child_that_panics_does_not_take_us_along() {
        let end = in_child(Duration::from_secs(10), |_| panic!("on purpose")).unwrap();
        assert!(end.said.is_empty() && end.hangs.is_none());
    }

    #[test]
    fn a_child_has_none_of_our_files() {
        let lock = File::open("/dev/null").unwrap();
        let number = lock.as_raw_fd();
        let end = in_child(Duration::from_secs(10), |pipe| {
            let open = Path::new("/proc/self/fd").join(number.to_string()).exists();
            tell(pipe, if open && number > 3 { "open" } else { "closed" });
        });
        assert_eq!(end.unwrap().said, b"closed");
    }
}
