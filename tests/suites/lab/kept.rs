//! Kept machines with cards, as an ordinary user: several at once, killed supervisors, guests that end in every way, jobs.

use anyhow::Result;
use no43_tests::{LabHost, Scene};
use serde_json::json;

/// In scripts: instances, their supervisors and machines, and what must not be left of them. `$seed` chooses the moments.
const KEPT: &str = r#"
RANDOM=$seed
echo "seed $seed"
state=/run/no43-lab
kept=/home/lab/.local/share/no43/instances
rm -rf "$kept" /home/lab/*.log /home/lab/*.code
guest=$work/recipes/lab-guest.toml
# in thousandths of a second
some() { sleep "$(( RANDOM % $1 / 1000 )).$(printf %03d $(( RANDOM % $1 % 1000 )))"; }
cards() { for d in /sys/bus/pci/devices/*; do [ "$(cat $d/class)" = 0x038000 ] && echo "${d##*/}"; done; }
lent() { for c in $(cards); do is "$c" vfio-pci && echo "$c"; done | wc -l; }
all_back() { for c in $(cards); do is "$c" bochs-drm && is "$(audio "$c")" snd_hda_intel || return 1; done; }
supervisor() { sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$state/m/$1/run.json" | head -n 1; }
machine() { sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$state/m/$1/machine.json" | head -n 1; }
state_of() { no43 ps --json | tr -d ' ",' | awk -F: -v n="$1" '$1=="name"{at=$2} $1=="left"&&at==n{print $2}'; }
is_state() { [ "$(state_of "$1")" = "$2" ]; }
gone() { [ ! -e "$state/m/$1/run.json" ]; }
alive() { [ -d "/proc/$1" ]; }
up() { n=$1; shift; no43 run --detach --locked --name "$n" "$@" "$guest" > "$n.log" 2>&1 || { cat "$n.log"; fail "'$n' did not start (seed $seed)"; }; }
has() { grep -qF -- "$2" "$1" || { cat "$1"; fail "$1 does not say: $2 (seed $seed)"; }; }
nobody() { ! running && [ -z "$(pgrep -u lab -x no43)" ]; }
nothing_left() {
    within 60 nobody
    within 20 all_back
    for left in "$state/m" "$state/leases" /run/no43/journal "$kept"; do
        [ -z "$(ls -A "$left" 2>/dev/null)" ] || fail "left in $left: $(ls -A "$left") (seed $seed)"
    done
}
"#;

/// How long a script with several guests may take, in seconds: twice what the longest has taken beside another lab.
const SEVERAL_GUESTS: u64 = 900;

fn seed() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let given = std::env::var("NO43_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(now.subsec_nanos() % 32_768);
    println!("seed {seed} (NO43_SEED={seed} repeats it)");
    seed
}

/// A lab host whose kernel panics takes its agent along. With several guests in it that is a fault of QEMU's emulated SVM
/// (`recipes/lab/three-cards.toml`), which says nothing about `no43`: the case is tried once more, and says so. One that hangs fails.
fn script(scene: &Scene, profile: &'static str, seconds: u64, script: &str) -> Result<()> {
    let whole = format!("seed={}\n{KEPT}\n{script}", seed());
    let once = || {
        let host = LabHost::up(scene, profile)?;
        host.script(seconds, &whole)?;
        host.down()
    };
    once().or_else(|error| {
        if !format!("{error:#}").contains("failed to reach the guest's agent") {
            return Err(error);
        }
        println!("lab fault: {error:#}; once more");
        once()
    })
}

/// Three at once, then kills at random moments: each guest lives on and is taken over; then three ways to end.
fn three(scene: &Scene, kills: u32, seconds: u64) -> Result<()> {
    let body = r#"
        up a --set "checks.ready=8 min" & up b --set "checks.ready=8 min" & up c --set "checks.ready=8 min" & wait
        [ "$(lent)" = 3 ] || { no43 gpus; fail "$(lent) cards are lent instead of 3"; }
        [ "$(no43 instance ls --json | grep -c '"running": true')" = 3 ] || fail "not three instances run"
        no43 run --locked --name a "$guest" > again.log 2>&1 && fail "a second run of 'a' was started"
        has again.log "runs already"
        no43 run --locked --ephemeral "$guest" > fourth.log 2>&1; [ $? = 7 ] || { cat fourth.log; fail "a fourth run"; }
        no43 instance rm --yes a > rm.log 2>&1 && fail "a running instance was removed"

        for n in $(seq $kills); do
            victim=$(echo a b c | cut -d' ' -f $(( RANDOM % 3 + 1 )))
            before=$(machine $victim)
            some 400
            kill -9 $(supervisor $victim)
            within 10 is_state $victim alone
            no43 gpus > gpus.log 2>&1
            is_state $victim alone || fail "a command that only looks took '$victim' over (seed $seed)"
            no43 release > release.log 2>&1 || { cat release.log; fail "release failed (seed $seed)"; }
            is_state $victim watched || { cat release.log; no43 ps; fail "'$victim' was not taken over (seed $seed)"; }
            [ "$(machine $victim)" = "$before" ] && alive "$before" || fail "the machine of '$victim' is another one (seed $seed)"
            [ "$(lent)" = 3 ] || fail "a card was taken from a living machine (seed $seed)"
        done
        echo "$kills kills, $kills taken over"

        # our supervisor's memory, with a card lent
        echo "supervisor: $(grep VmRSS /proc/$(supervisor a)/status)"
        no43 stop a > stop.log 2>&1 || { cat stop.log; fail "stop failed"; }
        has stop.log "the guest shut down"
        gone a && [ "$(lent)" = 2 ] || fail "after the first guest's end $(lent) cards are lent"
        kill -9 $(machine b)
        within 30 gone b
        no43 instance show b > b.show; has b.show "QEMU died"
        no43 shell c -- poweroff > off.log 2>&1
        within 60 gone c
        no43 instance show c > c.show; has c.show "the guest shut down"
        for n in a b c; do no43 instance rm --yes $n > /dev/null || fail "rm $n"; done
        nothing_left
    "#;
    script(scene, "three-cards", seconds, &format!("kills={kills}\n{body}\n{HANGS}"))
}

/// A driver that does not let go of its card: a write to sysfs that never returns, here into a pipe that nobody reads.
const HANGS: &str = r#"
    mkfifo /run/never && mount --bind /run/never /sys/bus/pci/drivers/bochs-drm/unbind || fail "no pipe over unbind"
    no43 run --detach --locked --ephemeral "$guest" > hangs.log 2>&1 && { cat hangs.log; fail "a card that hangs was lent"; }
    umount /sys/bus/pci/drivers/bochs-drm/unbind; rm /run/never
    has hangs.log "quarantine"
    no43 gpus > gpus.log 2>&1
    bad=$(sed -n 's/.* \(0[0-9]:00\) .*quarantine.*/\1.0/p' gpus.log | head -n 1)
    [ "$(grep -c quarantine gpus.log)" = 1 ] || { cat gpus.log; fail "not one card is set aside"; }
    no43 run --detach --locked --ephemeral "$guest" > next.log 2>&1 || { cat next.log; fail "the other cards do not go on"; }
    [ "$(lent)" = 1 ] || fail "$(lent) cards are lent beside the one that hangs"
    has next.log "lent"; grep -q "$bad" next.log && { cat gpus.log next.log hangs.log; fail "the card that hangs ($bad) was lent"; }
    no43 stop --force $(ls "$state/m") > stop.log 2>&1 || { cat stop.log; fail "stop failed"; }
    "$work/no43" release --end-quarantine "$bad" > ended.log 2>&1; has ended.log "no longer in quarantine"
    no43 gpus > gpus.log 2>&1; grep -q quarantine gpus.log && { cat gpus.log; fail "$bad is still set aside"; }
    nothing_left
"#;

pub(crate) fn three_at_once(scene: &Scene) -> Result<()> {
    three(scene, 5, SEVERAL_GUESTS)
}

pub(crate) fn a_hundred_kills(scene: &Scene) -> Result<()> {
    three(scene, 100, 1200)
}

/// A guest that restarts and keeps its card, and then panics.
pub(crate) fn guests_that_end(scene: &Scene) -> Result<()> {
    let body = r#"
        # with its memory in huge pages, which are this host's again at the end
        pool() { cat /proc/sys/vm/nr_hugepages; }; had=$(pool)
        up play --set "checks.ready=8 min" --set machine.hugepages=true
        has play.log "huge pages of 2 MiB, set aside until"
        [ "$(pool)" -gt "$had" ] && [ "$(awk '/HugePages_Free/{print $2}' /proc/meminfo)" = 0 ] || { cat /proc/meminfo; fail "the guest is not in huge pages"; }
        before=$(machine play)
        answers() { no43 shell play -- true > /dev/null 2>&1; }
        no43 shell play -- reboot > reboot.log 2>&1
        within 60 grep -q rebooted $state/m/play/events.jsonl
        [ "$(machine play)" = "$before" ] && [ "$(lent)" = 1 ] || fail "a guest's restart lost its card"
        within 180 answers
        no43 shell play --limit "5 s" -- sh -c 'modprobe pvpanic-mmio; echo c > /proc/sysrq-trigger' > panic.log 2>&1
        within 60 gone play
        no43 instance show play > show.log
        has show.log "the guest's kernel panicked"
        within 20 all_back
        no43 instance rm --yes play > /dev/null
        nothing_left

        # what a failed check has looked at stays as it is, if one wishes
        printf 'extends = "lab-guest.toml"\n[[check]]\nname = "never"\nrun = ["sh", "-c", "echo seen > /run/mark; false"]\n' > $work/recipes/never.toml
        no43 verify --locked --keep-on-failure --skip picture --runs /home/lab/runs --set "checks.ready=8 min" --set 'checks.lifecycle=[]' $work/recipes/never.toml > kept.log 2>&1
        [ $? = 10 ] || { cat kept.log; fail "a check that fails ended with another code than 10"; }
        kept_as=$(sed -n 's/.*kept  *\(verify-[^ ]*\) and its card.*/\1/p' kept.log)
        is_state "$kept_as" watched && [ "$(lent)" = 1 ] || { cat kept.log; no43 ps; fail "machine and card were not kept"; }
        no43 shell "$kept_as" -- cat /run/mark > mark.log 2>&1; has mark.log seen
        no43 stop "$kept_as" --force > stop.log 2>&1 || { cat stop.log; fail "stop"; }
        nothing_left
        [ "$(pool)" = "$had" ] || fail "$(pool) huge pages are left of the guest's, $had were there before"
    "#;
    script(scene, "one-card", SEVERAL_GUESTS, body)
}

/// Jobs over three cards: one that passes, one that fails, one that hangs, one whose `no43` is killed, one more than cards.
fn jobs(scene: &Scene, rounds: u32, seconds: u64) -> Result<()> {
    let body = r#"
        job() {
            n=$1; shift
            ( no43 job --locked --wait "8 min" --set "checks.ready=8 min" "$@" > job$n.log 2>&1; echo $? > job$n.code ) &
        }
        code_of() { within 400 test -s job$1.code; [ "$(cat job$1.code)" = "$2" ] || { cat job$1.log; fail "job $1 ended with $(cat job$1.code) instead of $2 (seed $seed)"; }; }
        for round in $(seq $rounds); do
            rm -f job*.code
            echo "to the guest" > in.txt; chmod 644 in.txt
            job 1 --in "in.txt:/root/in.txt" --out "/root/out.txt:out.txt" "$guest" -- sh -c 'cat /root/in.txt > /root/out.txt; ls -d /sys/bus/pci/drivers/bochs-drm/0000:*; echo done'
            job 2 "$guest" -- sh -c 'echo something is wrong >&2; exit 42'
            job 3 --limit "3 s" "$guest" -- sleep 1000
            job 4 "$guest" -- sleep 1001
            began() { pgrep -u lab -f 'no43 job.*sleep 1001' > /dev/null; }
            within 30 began
            some 20000
            kill -9 $(pgrep -u lab -f 'no43 job.*sleep 1001')
            code_of 1 0; has job1.log "/sys/bus/pci/drivers/bochs-drm/0000:"; has job1.log done
            [ "$(cat out.txt)" = "to the guest" ] || fail "the file that came out is another one"
            code_of 2 42; has job2.log "something is wrong"
            code_of 3 10; has job3.log "did not end within 3 s"
            no43 release > /dev/null 2>&1
            nothing_left
        done
    "#;
    script(scene, "three-cards", seconds, &format!("rounds={rounds}\n{body}"))
}

pub(crate) fn jobs_over_cards(scene: &Scene) -> Result<()> {
    jobs(scene, 1, SEVERAL_GUESTS)
}

pub(crate) fn twenty_jobs(scene: &Scene) -> Result<()> {
    jobs(scene, 5, 2400)
}

/// A start that is killed at any moment: before the lease, while binding, while QEMU comes up.
fn killed_starts(scene: &Scene, kills: u32, seconds: u64) -> Result<()> {
    let body = r#"
        one() { pgrep -u lab -x no43 > /dev/null; }
        for n in $(seq $kills); do
            no43 run --detach --locked --ephemeral "$guest" > start.log 2>&1 &
            some 3000
            pkill -9 -u lab -x no43; sleep 0.1; pkill -9 -u lab -x no43
            no43 release > release.log 2>&1 || { cat release.log; fail "release failed (seed $seed)"; }
            # a machine that had come up lives on; it is ended like any other
            for left in $(ls $state/m 2>/dev/null); do no43 stop $left --force > stop.log 2>&1; done
            no43 release > release.log 2>&1
            nothing_left
        done
        echo "$kills kills over bind, start and release; every driver is back"
    "#;
    script(scene, "one-card", seconds, &format!("kills={kills}\n{body}"))
}

pub(crate) fn starts_killed(scene: &Scene) -> Result<()> {
    killed_starts(scene, 5, 300)
}

pub(crate) fn a_hundred_starts_killed(scene: &Scene) -> Result<()> {
    killed_starts(scene, 100, 2400)
}

/// A tap in a bridge, then a macvtap; a folder; a keyboard that comes and goes.
pub(crate) fn network_share_and_usb(scene: &Scene) -> Result<()> {
    let host = LabHost::up(scene, "one-card")?;
    host.outer("device_add", json!({"driver": "usb-kbd", "id": "keyboard", "bus": "usb.0", "port": "1"}))?;
    let body = r#"
        for module in tun bridge macvtap dummy xhci_pci usbhid; do modprobe -q $module; done
        ip link add br0 type bridge && ip addr add 10.43.0.1/24 dev br0 && ip link set br0 up || fail "no bridge"
        mkdir -p /etc/no43; printf 'br0 # the guests\nwire0\n' > /etc/no43/bridges
        ip link add wire0 type dummy && ip link set wire0 up || fail "no dummy"
        no43 run --locked --name play --set network.mode=bridge --set network.bridge=br7 "$guest" > no.log 2>&1; [ $? = 8 ] || { cat no.log; fail "a bridge that is not there"; }
        has no.log "this host has no bridge 'br7'; it has br0"
        is "$(cards)" bochs-drm || fail "a start that failed kept the card"
        no43 instance rm --yes play > /dev/null

        mkdir -p /home/lab/music; echo "a song" > /home/lab/music/one.txt; chown -R lab: /home/lab/music
        cat > $work/recipes/play.toml <<END
extends = "lab-guest.toml"
[network]
mode = "bridge"
bridge = "br0"
[[share]]
name = "music"
path = "/home/lab/music"
to   = "/srv/music"
END
        guest=$work/recipes/play.toml
        up play --set "checks.ready=8 min"
        inside() { no43 shell play -- sh -c "$*" > inside.log 2>&1 || { cat inside.log; cat $state/m/play/events.jsonl; fail "in the guest: $*"; }; }
        ready() { grep -q '"ready"' $state/m/play/events.jsonl; }
        within 400 ready
        inside cat /srv/music/one.txt; has inside.log "a song"
        inside 'touch /srv/music/two.txt; true'; [ -e /home/lab/music/two.txt ] && fail "a read-only share was written to"
        inside 'modprobe virtio_net; sleep 1; busybox ip link set eth0 up && busybox ip addr add 10.43.0.2/24 dev eth0; cat /sys/class/net/eth0/address'
        mac=$(tail -n 1 inside.log)
        inside 'busybox ping -c 1 -W 20 10.43.0.1'
        ip neigh show dev br0 | grep -q "10.43.0.2 lladdr $mac" || { ip neigh; fail "the guest is not a neighbour"; }
        no43 ip play > ip.log; has ip.log 10.43.0.2

        # it is checked as it runs, and goes on running
        no43 verify --running nobody > who.log 2>&1 && fail "a machine that is not there was checked"
        has who.log "running: play"
        no43 verify --running play --runs /home/lab/runs > asked.log 2>&1 || { cat asked.log; fail "verify --running"; }
        for check in present driver audio connector quiet; do grep -q "✔ $check" asked.log || { cat asked.log; fail "no $check"; }; done
        has asked.log "it paints over what the guest shows"
        inside 'cat /sys/class/net/eth0/address'; has inside.log "$mac"

        # a keyboard comes and goes
        chmod a+rw /dev/bus/usb/*/*
        no43 usb ls > usb.log; has usb.log "QEMU USB Keyboard"
        port=$(awk '/Keyboard/{print $1}' usb.log)
        no43 usb add play 9-9 > none.log 2>&1 && fail "a device that is not there was passed"
        has none.log "QEMU USB Keyboard ($port"
        inside 'modprobe xhci_pci; modprobe usbhid'
        no43 usb add play $port > usb-add.log 2>&1 || { cat usb-add.log; fail "usb add"; }
        guest_has() { no43 shell play -- sh -c 'cat /sys/bus/usb/devices/*/product' 2>/dev/null | grep -q 'QEMU USB Keyboard'; }
        guest_lacks() { ! guest_has; }
        within 60 guest_has
        no43 usb rm play $port > usb-rm.log 2>&1 || { cat usb-rm.log; fail "usb rm"; }
        within 60 guest_lacks
        no43 stop play > stop.log 2>&1 || { cat stop.log; fail "stop failed"; }
        within 20 gone play
        [ -z "$(ls /sys/class/net/br0/brif)" ] || fail "a tap is left in the bridge"
        no43 instance rm --yes play > /dev/null

        sed -i 's/mode = "bridge"/mode = "macvtap"/; s/bridge = "br0"/parent = "wire0"/' $guest
        up play --set "checks.ready=8 min"
        link=$(ls /sys/class/net | grep '^no43m') || fail "there is no link"
        up_now() { [ "$(no43 shell play -- sh -c 'modprobe virtio_net; sleep 1; busybox ip link set eth0 up; cat /sys/class/net/eth0/address' | tail -n 1)" = "$(cat /sys/class/net/$link/address)" ]; }
        within 300 up_now
        # both killed: the link is removed by the next command
        victim=$(machine play); kill -9 $(supervisor play); kill -9 $victim
        no43 release > release.log 2>&1
        [ -e /sys/class/net/$link ] && { cat release.log; fail "the link of a dead machine is still there"; }
        no43 instance rm --yes play > /dev/null
        ip link del br0; ip link del wire0
        nothing_left
    "#;
    host.script(SEVERAL_GUESTS, &format!("seed={}\n{KEPT}\n{body}", seed()))?;
    host.down()
}
