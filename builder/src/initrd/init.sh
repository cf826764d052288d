#!/bin/busybox sh
# The whole initrd: load drivers in a fixed order, wait for the root disk, hand over.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

give_up() {{
    echo "no43 initrd: $1"
    echo "no43 initrd: kernel $(uname -r); command line: $(cat /proc/cmdline)"
    echo "no43 initrd: disks: $(ls -d /sys/block/* 2>/dev/null | tr '\n' ' ')"
    echo "no43 initrd: PCI: $(cat /sys/bus/pci/devices/*/modalias 2>/dev/null | tr '\n' ' ')"
    dmesg | tail -n 15
    sync
    poweroff -f
}}

for module in {modules}; do
    insmod "/lib/$module" || give_up "failed to load $module"
done

# `mount` itself is the test: the node may be there before the disk can be read.
tries=0
until mount -t ext4 -o rw,noatime {root} /sysroot 2>/tmp.log; do
    tries=$((tries + 1))
    [ "$tries" -lt $(({limit} * 20)) ] || give_up "{root} could not be mounted in {limit} s: $(cat /tmp.log)"
    usleep 50000
done

mount -o move /proc /sysroot/proc
mount -o move /sys /sysroot/sys
mount -o move /dev /sysroot/dev
exec switch_root /sysroot {init}
