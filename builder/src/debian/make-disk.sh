# Makes the root file system out of the tree, right inside the disk image that is our standard input. $1: the tree.
# The image is reached through /proc, so the namespace needs no right to look into the folder that it lies in.
set -eu
root=$1
. "$root/tmp/no43/settings"
echo "no43: phase making the file system" >&2
view=$(mktemp -d)
# Not recursive: the tree as it is on the disk, without /proc, /sys and /dev of the chroot.
mount --bind "$root" "$view"
for folder in dev run tmp; do
    mount -t tmpfs -o "mode=$(stat -c %a "$view/$folder")" tmpfs "$view/$folder"
done
# Every block of a new sparse file is zero, so nothing is left for the guest to zero in the background. The features
# that are off are those that GRUB 2.06 cannot read.
status=0
mke2fs -q -F -t ext4 -m 1 -L "$ROOT_LABEL" -U "$ROOT_UUID" -O ^metadata_csum_seed,^orphan_file \
    -E "offset=$ROOT_OFFSET,hash_seed=$ROOT_UUID,assume_storage_prezeroed=1" \
    -d "$view" /proc/self/fd/0 "$ROOT_KIB"k >&2 || status=$?
for folder in dev run tmp .; do umount "$view/$folder"; done
rmdir "$view"
exit $status
