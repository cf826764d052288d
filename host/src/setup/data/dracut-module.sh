#!/bin/bash
# Written by 'no43 host setup --reserve'; 'no43 host setup --undo' removes it.
# Puts vfio-pci and the list of reserved cards into the initramfs, and runs before udev.
check() { [ -s /etc/no43/reserved ]; }
depends() { return 0; }
installkernel() { instmods vfio_pci vfio_iommu_type1; }
install() {
    inst_simple /etc/no43/reserved
    inst_multiple readlink modprobe
    # dracut reads hooks into its own shell, which must not end with ours
    inst_script "$moddir/no43-reserve.sh" /sbin/no43-reserve
    inst_hook pre-udev 00 "$moddir/no43-hook.sh"
}
