# Turns a tree of packages into a guest: user, locale, services, initrd, bootloader parts. $1: the tree.
# Runs with root rights inside a user namespace. What the builder needs outside goes to /tmp/no43-out.
set -eu
root=$1
. "$root/tmp/no43/settings"
out=$root/tmp/no43-out
mkdir -p "$out"

inside() { LC_ALL=C.UTF-8 chroot "$root" "$@"; }
phase() { echo "no43: phase $*" >&2; }
fail() { echo "no43: failed $*" >&2; exit 1; }

phase "configuring"
[ -e "$root/usr/share/zoneinfo/$TIMEZONE" ] || fail "guest.timezone: there is no time zone '$TIMEZONE' in Debian's tzdata"
case "$LOCALE" in
    C | POSIX | C.*) ;;
    *)
        inside grep -q "^$LOCALE " /usr/share/i18n/SUPPORTED || fail "guest.locale: Debian has no locale '$LOCALE'"
        inside grep "^$LOCALE " /usr/share/i18n/SUPPORTED > "$root/etc/locale.gen"
        inside locale-gen > /dev/null
        ;;
esac

if [ -n "$USER_NAME" ]; then
    for group in $USER_GROUPS; do
        inside getent group "$group" > /dev/null || inside groupadd --system "$group"
    done
    # '!' is a locked password: nobody can log in with it. The real one is set when a machine starts.
    inside useradd --create-home --shell /bin/bash --password '!' --groups "$(echo $USER_GROUPS | tr ' ' ,)" "$USER_NAME"
    # Files of the recipe may have made the home before its user was there; then useradd left it alone.
    cp -r --no-clobber "$root/etc/skel/." "$root/home/$USER_NAME"
    chmod 700 "$root/home/$USER_NAME"
    inside chown --recursive --no-dereference "$USER_NAME:" "/home/$USER_NAME"
fi
while read -r owner path; do
    inside chown --no-dereference "$owner" "$path" || fail "files: cannot give $path to '$owner'"
done < "$root/tmp/no43/owners"

if [ "$INIT" = systemd ]; then
    inside systemctl --quiet enable systemd-networkd
    # Waiting for a network holds up a boot for two minutes where there is none; nothing here needs it.
    inside systemctl --quiet disable systemd-networkd-wait-online
    rm -f "$root/etc/resolv.conf"
    if [ -e "$root/usr/lib/systemd/systemd-resolved" ]; then
        inside systemctl --quiet enable systemd-resolved
        ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    else
        # The name server of QEMU's user network.
        echo "nameserver 10.0.2.3" > "$root/etc/resolv.conf"
    fi
else
    rm -f "$root/etc/resolv.conf"
    echo "nameserver 10.0.2.3" > "$root/etc/resolv.conf"
fi

kernel=$(ls -v "$root"/boot/vmlinuz-* 2> /dev/null | tail -n 1)
[ -n "$kernel" ] || fail "guest.packages: there is no kernel in /boot"
release=${kernel##*/vmlinuz-}
case "$INITRD_KIND" in
    debian)
        phase "making the initrd"
        # Packages were installed with INITRD=No, so this is the one time that it is made.
        for module in $INITRD_MODULES; do echo "$module" >> "$root/etc/initramfs-tools/modules"; done
        inside update-initramfs -c -k "$release" > /dev/null
        ;;
    own)
        mkdir "$out/modules"
        # `modprobe` knows the order; a module that is built in has no file.
        for module in $INITRD_MODULES; do
            inside modprobe --set-version "$release" --show-depends "$module" \
                || fail "guest.initrd-modules: kernel $release has no module '$module'"
        done > "$root/tmp/no43/loads"
        while read -r verb file rest; do
            name=$(basename "$file" .xz)
            if [ "$verb" != insmod ] || [ -e "$out/modules/$name" ]; then continue; fi
            case "$file" in
                *.xz) xz --decompress --stdout "$root$file" > "$out/modules/$name" ;;
                *) cp "$root$file" "$out/modules/$name" ;;
            esac
            echo "$name" >> "$out/module-order"
        done < "$root/tmp/no43/loads"
        inside busybox true || fail "guest.packages: the initrd needs busybox-static"
        cp "$root/usr/bin/busybox" "$out/busybox" 2> /dev/null || cp "$root/bin/busybox" "$out/busybox"
        ;;
esac

case "$BOOT" in
    direct)
        cp "$kernel" "$out/kernel"
        [ "$INITRD_KIND" = own ] || cp "$root/boot/initrd.img-$release" "$out/initrd"
        ;;
    disk)
        phase "making the bootloader"
        mkdir -p "$root/boot/grub" "$out/boot"
        cp -r "$root/usr/lib/grub/i386-pc" "$root/boot/grub/"
        inside grub-editenv /boot/grub/grubenv create
        # Finds the root file system by its UUID, whatever the disk is called and wherever it stands.
        printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$ROOT_UUID" > "$root/tmp/no43/load.cfg"
        inside grub-mkimage --format i386-pc --output /tmp/no43-out/boot/core.img --config /tmp/no43/load.cfg \
            --prefix /boot/grub biosdisk part_gpt ext2 search_fs_uuid
        cp "$root/usr/lib/grub/i386-pc/boot.img" "$out/boot/boot.img"
        cp "$root/usr/lib/shim/shimx64.efi.signed" "$out/boot/bootx64.efi"
        cp "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$out/boot/grubx64.efi"
        printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$ROOT_UUID" > "$out/boot/grub.cfg"
        # update-grub asks the running system for its devices, which a tree has not. This menu is replaced by Debian's own
        # at the first kernel upgrade in the guest.
        sed -e "s|@RELEASE@|$release|g" -e "s|@UUID@|$ROOT_UUID|g" -e "s|@OPTIONS@|$KERNEL_OPTIONS|" \
            < "$root/tmp/no43/grub.cfg" > "$root/boot/grub/grub.cfg"
        # Lets grub-cloud-amd64 install a new GRUB for BIOS and UEFI whenever an upgrade in the guest brings one.
        : > "$root/etc/grub.d/enable_cloud"
        ;;
esac

phase "tidying up"
inside dpkg-query --show --showformat '${binary:Package} ${Version}\n' > "$out/packages"
rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root/var/cache/ldconfig/aux-cache" \
    "$root"/etc/ssh/ssh_host_*_key* "$root/var/lib/dbus/machine-id" "$root/etc/dpkg/dpkg.cfg.d/no43-build" \
    "$root/etc/apt/apt.conf.d/00mmdebstrap" "$root"/var/log/apt/*.log "$root/var/log/apt/eipp.log.xz" \
    "$root/var/log/dpkg.log" "$root/var/log/alternatives.log" "$root"/etc/.pwd.lock
find "$root/var/lib/apt/lists" -type f -delete
