#!/bin/sh
# Written by 'no43 host setup --reserve'; 'no43 host setup --undo' removes it.
# Runs in the initramfs before udev, so before any driver: keeps the cards in /etc/no43/reserved for virtual machines.
# A line is one card, with ADDRESS=VENDOR:DEVICE/SUBSYSTEM for each function. A card that is another one now, because
# addresses moved, is left alone.
PREREQ=""
case "${1:-}" in prereqs) echo "$PREREQ"; exit 0 ;; esac

say() { echo "no43-reserve: $*" > /dev/kmsg; }
word() { [ -r "$1" ] && read -r word < "$1" && echo "$word"; }
ids() { echo "$(word "$1/vendor"):$(word "$1/device")/$(word "$1/subsystem_vendor"):$(word "$1/subsystem_device")"; }
devices=/sys/bus/pci/devices
kept=""

[ -r /etc/no43/reserved ] || exit 0
while read -r card; do
    case "$card" in "" | "#"*) continue ;; esac
    same=yes
    for function in $card; do
        address=${function%%=*}
        there=$(ids "$devices/$address")
        [ "$there" = "${function#*=}" ] && continue
        say "$address is $there and not ${function#*=}: this card is not kept free; run 'no43 host setup --reserve' again"
        same=no
    done
    [ $same = yes ] && kept="$kept $card"
done < /etc/no43/reserved

[ -n "$kept" ] || exit 0
for function in $kept; do echo vfio-pci > "$devices/${function%%=*}/driver_override"; done
# an ordinary user's QEMU cannot have the second one loaded
modprobe -a vfio-pci vfio_iommu_type1 || say "vfio-pci or vfio_iommu_type1 cannot be loaded"
for function in $kept; do
    address=${function%%=*}
    [ -e "$devices/$address/driver" ] || echo "$address" > /sys/bus/pci/drivers_probe
    driver=$(readlink "$devices/$address/driver")
    say "$address has ${driver##*/}"
done
exit 0
