//! What the lab does inside the lab host: the few shell scripts that it sends through the guest agent.
//!
//! They are the only place that knows the lab host's inside. Each ends with code 0, or says on standard error what it
//! missed.

/// Where the lab's directories are inside.
pub(crate) const SHARE: &str = "/no43/share";
/// The store, read-only.
pub(crate) const STORE: &str = "/no43/store";
/// The inner user's own state; `/run/no43` is root's there, as on every host.
pub(crate) const STATE: &str = "/run/no43-lab";
/// The ordinary user that runs the inner no43.
pub(crate) const USER: &str = "lab";

/// The tags of the two shares.
pub(crate) const SHARE_TAG: &str = "evidence";
pub(crate) const STORE_TAG: &str = "store";

/// Sent once after a boot, before the snapshot: everything that is the same for every run.
///
/// Timers are stopped, because after a restore the clock jumps and every missed one would fire. What a later mount or
/// guest needs is loaded, so that a restored lab host loads nothing. A card counts as ready when a driver holds it.
/// The agent sets the hardware clock after the system's; that takes longer than the restore, and QEMU's hardware clock is
/// right by itself.
pub(crate) const MAKE_READY: &str = r#"
fail() { echo "$1" >&2; exit 1; }
systemctl stop '*.timer' 2>/dev/null
modprobe kvm_amd nested=1 2>/dev/null || modprobe kvm_intel nested=1 2>/dev/null
modprobe vfio-pci || fail "the kernel has no vfio-pci"
for module in 9p 9pnet_virtio pciehp overlay tun; do modprobe -q $module; done
udevadm settle --timeout=60 || fail "udev did not settle within 60 s"
[ -c /dev/kvm ] || fail "there is no /dev/kvm: kvm_amd did not load"
waited=0
for device in /sys/bus/pci/devices/*; do
    case $(cat "$device/class") in 0x0300*|0x0380*|0x0403*) ;; *) continue ;; esac
    while [ ! -e "$device/driver" ]; do
        [ $waited -lt 300 ] || fail "no driver took ${device##*/} within 30 s"
        waited=$((waited + 1)); sleep 0.1
    done
done
[ -d /sys/kernel/iommu_groups/0 ] || fail "there are no IOMMU groups"
id lab >/dev/null 2>&1 || useradd --create-home --shell /bin/bash lab || fail "there is no user lab"
usermod --append --groups kvm lab 2>/dev/null
mkdir -p /etc/sudoers.d && echo 'lab ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/no43-lab && chmod 440 /etc/sudoers.d/no43-lab
grep -q "$(hostname)" /etc/hosts 2>/dev/null || echo "127.0.1.1 $(hostname)" >> /etc/hosts
mkdir -p /no43/share /no43/store
if [ -e /usr/sbin/hwclock ]; then mount --bind /bin/true /usr/sbin/hwclock; else ln -s /bin/true /usr/sbin/hwclock; fi
sync; fstrim / 2>/dev/null
exit 0
"#;

/// Sent after every start, when the clock is right. Argument: a new boot id.
///
/// The kernel's boot id is the same after every restore, although programs use it to tell one boot from the next.
pub(crate) const WAKE: &str = r#"
mkdir -p /run/no43-lab && echo "$1" > /run/no43-lab.boot-id
mount --bind /run/no43-lab.boot-id /proc/sys/kernel/random/boot_id
chown lab: /run/no43-lab /dev/virtio-ports/org.no43.lab && chmod 700 /run/no43-lab
for tag in evidence store; do
    waited=0
    until grep -qs "$tag" /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag; do
        [ $waited -lt 500 ] || { echo "the share '$tag' did not appear within 10 s" >&2; exit 1; }
        waited=$((waited + 1)); sleep 0.02
    done
done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $options,cache=mmap evidence /no43/share && mount -t 9p -o $options,cache=loose,ro store /no43/store
"#;

/// Sent before a run in a lab that was up before: images that were built since then must be seen.
pub(crate) const STORE_AGAIN: &str = r#"
umount /no43/store && mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro store /no43/store
"#;

/// Before the lab host starts again: the initrd that it has made, if it has made one.
pub(crate) const BRING_OUT_INITRD: &str = r#"
initrd=/boot/initrd.img-$(uname -r)
[ ! -e "$initrd" ] || cp "$initrd" /no43/share/initrd || exit 1
sync
"#;

/// Starts a command for a run and waits for it. Arguments: the run's directory, `NAME=VALUE` …, the program, its arguments.
///
/// Output goes to files, so that the other side can read along. The command gets a session of its own (so that an
/// interrupt reaches all of it), the user lab, and no limit for locked memory: VFIO pins guests.
pub(crate) const RUN: &str = r#"
run=$1; shift
cd "$run/work" || exit 1
setsid --wait sh -c 'echo $$ > "$0/out/pid"; exec "$@"' "$run" \
    prlimit --memlock=unlimited:unlimited -- \
    setpriv --reuid=lab --regid=lab --init-groups --inh-caps=-all -- \
    env -i "$@" > "$run/out/stdout" 2> "$run/out/stderr" < /dev/null
echo $? > "$run/out/code.new" && mv "$run/out/code.new" "$run/out/code"
"#;

/// Sends a signal to everything of a run; fine if that has ended. Arguments: the run's directory, the signal.
pub(crate) const SIGNAL: &str = r#"
group=$(cat "$1/out/pid" 2>/dev/null) || exit 0
kill -s "$2" -- "-$group" || ! kill -s 0 -- "-$group" 2>/dev/null
"#;

/// A shell for a person on the port `org.no43.shell`. Arguments: rows, columns, what `TERM` says.
/// The port can be opened by one at a time, hence `<>`, and hence a shell that somebody has left is ended first.
pub(crate) const SHELL: &str = r#"
export TERM="$3" NO43_STORE=/no43/store NO43_STATE=/run/no43-lab
port=/dev/virtio-ports/org.no43.shell
left=$(cat /run/no43-lab.shell 2>/dev/null) && kill -s KILL -- "-$left" 2>/dev/null
echo $$ > /run/no43-lab.shell
exec setsid script --quiet --return --command "stty rows $1 cols $2; cd /no43/share; exec su --whitelist-environment=TERM,NO43_STORE,NO43_STATE --login lab" /dev/null <> $port >&0 2>&1
"#;
