//! What root sets up once, and what an ordinary user can do then: the helper, a card kept free from boot, a host that
//! shuts down.

use anyhow::Result;
use no43_tests::{LabHost, Scene};

/// In scripts: the card, its binding, and a machine that is up in seconds because nobody waits for its guest.
const HOST: &str = r#"
state=/run/no43-lab
guest=$work/recipes/lab-guest.toml
for d in /sys/bus/pci/devices/*; do [ "$(cat $d/class)" = 0x038000 ] && card=${d##*/}; done
slot=${card#0000:}; slot=${slot%.0}
lent() { is "$card" vfio-pci && is "$(audio "$card")" vfio-pci; }
back() { is "$card" bochs-drm && is "$(audio "$card")" snd_hda_intel; }
has() { grep -qF -- "$2" "$1" || { cat "$1"; fail "$1 does not say: $2"; }; }
quick() { no43 run --detach --locked --ephemeral --set "checks.ready=1 s" "$guest" > quick.log 2>&1; }
off() { no43 stop "$(ls $state/m)" --force > off.log 2>&1 || { cat off.log; fail "stop failed"; }; }
etc() { (cd /etc; find . -type f ! -name '*-' ! -name '.pwd.lock' | sort | xargs md5sum); }
# a unit of systemd with a view of its own does not see the lab's boot id, so everybody takes the kernel's
umount /proc/sys/kernel/random/boot_id 2> /dev/null
# no sudo from here on
rm -f /etc/sudoers.d/*; gpasswd -d lab sudo > /dev/null 2>&1
root_no43() { env -i PATH="$PATH" HOME=/root NO_COLOR=1 /usr/local/bin/no43 "$@"; }
install -m 755 "$work/no43" /usr/local/bin/no43
"#;

fn script(host: &LabHost<'_>, seconds: u64, script: &str) -> Result<()> {
    host.script(seconds, &format!("{HOST}\n{script}")).map(drop)
}

/// Five verbs for one group, as an ordinary user without sudo.
pub(crate) fn helper(scene: &Scene) -> Result<()> {
    let body = r#"
        quick; [ $? = 8 ] || { cat quick.log; fail "without a way to root the run ended with another code than 8"; }
        back || fail "something was unbound without a way to root"
        etc > etc.before
        root_no43 host setup --helper --user lab --dry-run > dry.log 2>&1 || { cat dry.log; fail "dry run"; }
        has dry.log "no43-helper.socket"
        etc | cmp -s - etc.before || fail "a dry run wrote something"
        root_no43 host setup --helper --user lab --yes > setup.log 2>&1 || { cat setup.log; fail "setup"; }
        root_no43 host setup --helper --user lab --yes > twice.log 2>&1 || { cat twice.log; fail "a second setup"; }
        has twice.log "everything is as wanted already"
        no43 doctor > doctor.log 2>&1; has doctor.log "the helper answers"

        quick || { cat quick.log; fail "a run through the helper"; }
        lent || fail "the card is not lent"
        off; within 20 back
        # the other verbs
        sleep 300 & sleeper=$!
        setpriv --reuid=lab --regid=lab --init-groups sleep 300 & owner=$!
        within 5 is_labs $owner
        of() { echo "{\"pid\":$1,\"start_time\":$(sed 's/.*) //' /proc/$1/stat | cut -d' ' -f20)}"; }
        pool=/proc/sys/vm/nr_hugepages; had=$(cat $pool)
        no43 host ask "{\"verb\":\"hugepages\",\"pages\":4,\"lease\":\"a\",\"owner\":$(of $owner)}" > ask.log
        has ask.log '"pages":4'; [ "$(cat $pool)" = $((had + 4)) ] || fail "$(cat $pool) huge pages"
        ip link add br9 type bridge
        tap="{\"verb\":\"network\",\"device\":{\"net\":\"tap\",\"bridge\":\"br9\"},\"lease\":\"a\",\"owner\":$(of $owner)}"
        no43 host ask "$tap" > ask.log; has ask.log "/etc/no43/bridges"
        mkdir -p /etc/no43; echo br9 > /etc/no43/bridges
        no43 host ask "$tap" > ask.log; has ask.log '"name":"no43t0"'
        [ "$(cat /sys/class/net/no43t0/owner)" = "$(id -u lab)" ] || fail "the tap is not the user's"
        [ "$(basename "$(readlink /sys/class/net/no43t0/master)")" = br9 ] || fail "the tap is on no bridge"
        no43 host ask '{"verb":"release","functions":[],"lease":"a"}' > ask.log; has ask.log released
        [ "$(cat $pool)" = "$had" ] && [ ! -e /sys/class/net/no43t0 ] || fail "something of the lease is left"
        # what is not the user's
        no43 host ask "{\"verb\":\"hugepages\",\"pages\":4,\"lease\":\"a\",\"owner\":$(of $sleeper)}" > ask.log
        has ask.log "not the user's"
        setpriv --reuid=nobody --regid=nogroup --clear-groups "$work/no43" host ask '{"verb":"hello"}' > ask.log 2>&1 && fail "nobody was served"
        kill $owner $sleeper; rm -r /etc/no43; ip link delete br9
        journalctl -u no43-helper --no-pager > journal.log
        for line in "bind $card $(audio $card) lease=" "release $card" "hugepages 4 lease=a: done" "tap on br9 lease=a: done" "not the user"; do
            has journal.log "$line"
        done
        root_no43 host setup --undo > undo.log 2>&1 || { cat undo.log; fail "undo"; }
        etc | diff - etc.before > etc.diff || { cat undo.log etc.diff; fail "undo left something"; }
    "#;
    let host = LabHost::up(scene, "one-card")?;
    let owned = "is_labs() { [ \"$(stat -c %U /proc/$1)\" = lab ]; }";
    script(&host, 300, &format!("{owned}\n{body}"))?;
    host.down()
}

/// A host that shuts down under a guest, and comes back with its card kept free.
pub(crate) fn reserved(scene: &Scene) -> Result<()> {
    let before = r#"
        # an initramfs as Debian makes it, with the card's drivers in it
        printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n' > /etc/initramfs-tools/conf.d/lab
        printf '%s\n' virtio_pci virtio_blk ext4 bochs snd_hda_intel >> /etc/initramfs-tools/modules
        mkdir -p /var/lib/initramfs-tools; update-initramfs -c -k "$(uname -r)" > initramfs.log 2>&1 || { cat initramfs.log; fail "update-initramfs"; }
        etc > etc.before
        root_no43 host setup --reserve $slot --user lab --yes > setup.log 2>&1 || { cat setup.log; fail "setup"; }
        has setup.log "free from the next boot on"
        back || fail "the card was taken before the next boot"
        systemctl restart systemd-logind
        systemctl unmask polkit 2>&1
        # mid-run: bound by sudo this once
        echo 'lab ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/no43-lab; chmod 440 /etc/sudoers.d/no43-lab
        no43 run --detach --locked --name play --set "checks.ready=8 min" "$guest" > play.log 2>&1 || { cat play.log; fail "play"; }
        systemd-inhibit --list --no-legend > locks.log; cat locks.log
        grep no43 locks.log | grep -q " sleep " && grep no43 locks.log | grep -q " idle " || fail "the host may sleep under a lease"
        grep no43 locks.log | grep -q "delay" || fail "the host does not wait for its guest"
    "#;
    let after = r#"
        no43 instance show play > show.log 2>&1; has show.log "the guest shut down"
        [ -z "$(ls -A /run/no43/journal 2>/dev/null)" ] || fail "the journal of a boot that is over is left"
        lent || { dmesg | grep -i "no43\|vfio\|bochs"; fail "$(driver $card) and $(driver $(audio $card)) have the card after the boot"; }
        dmesg > dmesg.log; has dmesg.log "no43-reserve: $card has vfio-pci"
        ! grep -q "bochs-drm $card" dmesg.log || fail "the card's driver was there first"
        node=/dev/vfio/$(basename "$(readlink /sys/bus/pci/devices/$card/iommu_group)")
        [ "$(stat -c '%G %a' $node)" = "no43 660" ] || fail "$node is $(stat -c '%U %G %a' $node)"
        no43 doctor > doctor.log 2>&1; has doctor.log "kept free from boot and yours"
        quick || { cat quick.log; fail "a run without any way to root"; }
        qemu > /dev/null || fail "no QEMU"
        off; lent || fail "a reserved card is with $(driver $card) now"
        has off.log "reset by vfio"
        root_no43 host setup --undo > undo.log 2>&1 || { cat undo.log; fail "undo"; }
        etc | diff - etc.before > etc.diff || { cat undo.log etc.diff; fail "undo left something"; }
    "#;
    let host = LabHost::up(scene, "one-card")?;
    script(&host, 400, before)?;
    host.reboot()?;
    script(&host, 300, after)?;
    host.down()
}

/// An instance of root's that comes up with its host, is stopped by the service manager, and needs nobody.
pub(crate) fn autostart(scene: &Scene) -> Result<()> {
    let auto = r#"
        auto() { env -i PATH="$PATH" HOME=/root NO_COLOR=1 NO43_STORE=/no43/store NO43_GUEST="$work/no43-guest" /usr/local/bin/no43 "$@"; }
        show() { auto instance show auto > show.log 2>&1; }
    "#;
    let before = r#"
        auto run --detach --locked --name auto --set "checks.ready=8 min" "$guest" > auto.log 2>&1 || { cat auto.log; fail "auto"; }
        auto stop auto > stop.log 2>&1 || { cat stop.log; fail "stop"; }
        auto instance autostart auto > start.log 2>&1 || { cat start.log; fail "autostart"; }
        has start.log "no43@auto.service"
        systemd-analyze verify /etc/systemd/system/no43@.service 2> verify.log; [ -s verify.log ] && { cat verify.log; fail "systemd complains about the unit"; }
        back || fail "the card is still lent"
        # a lab gets its store only after the boot
        mkdir -p /etc/systemd/system/no43@auto.service.d
        printf '[Service]\nExecStartPre=/bin/sh -c "until [ -d /no43/store/images ]; do sleep 0.2; done"\n' > /etc/systemd/system/no43@auto.service.d/lab.conf
    "#;
    let after = r#"
        up() { systemctl --quiet is-active no43@auto.service; }
        for look in $(seq 60); do up && break; sleep 1; done
        up || { systemctl status no43@auto.service; journalctl -u no43@auto.service --no-pager; fail "the service did not start with the host"; }
        within 60 lent
        answers() { auto shell auto -- true > /dev/null 2>&1; }
        within 240 answers
        systemctl stop no43@auto.service || { systemctl status no43@auto.service; fail "the service did not stop"; }
        show; has show.log "the guest shut down"
        within 20 back
        systemctl --quiet is-failed no43@auto.service && { systemctl status no43@auto.service; fail "a stop counts as a failure"; }
        auto instance autostart auto --off > off.log 2>&1 || { cat off.log; fail "off"; }
        [ "$(systemctl is-enabled no43@auto.service 2> /dev/null)" = disabled ] || fail "it would start again"
    "#;
    let host = LabHost::up(scene, "one-card")?;
    script(&host, 400, &format!("{auto}\n{before}"))?;
    host.reboot()?;
    script(&host, 400, &format!("{auto}\n{after}"))?;
    host.down()
}
