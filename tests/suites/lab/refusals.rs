//! What the host does not lend, and that it says why before it changes anything.

use anyhow::{Context, Result};
use no43_tests::{LabHost, Scene};

/// In scripts: the addresses of the cards' video functions, and a check that nothing was unbound.
const CARDS: &str = r#"
cards() { for d in /sys/bus/pci/devices/*; do [ "$(cat $d/class)" = 0x038000 ] && echo "${d##*/}"; done; }
card=$(cards | head -n 1)
untouched() { is "$card" bochs-drm && is "$(audio "$card")" snd_hda_intel; }
recipe_for() { printf 'extends = "lab-guest.toml"\n\n[[card]]\naddress = "%s"\n' "$1" > "$work/recipes/this-card.toml"; }
says() { grep -qF -- "$1" verify.log || { cat verify.log; fail "verify does not say: $1"; }; }
code_is() { [ "$(cat verify.code)" = "$1" ] || { cat verify.log; fail "exit code $(cat verify.code) instead of $1"; }; }
"#;

fn script(scene: &Scene, profile: &'static str, seconds: u64, script: &str) -> Result<()> {
    let host = LabHost::up(scene, profile)?;
    host.script(seconds, &format!("{CARDS}\n{script}")).with_context(|| format!("in the lab {profile}"))?;
    host.down()
}

pub(crate) fn bad_groups(scene: &Scene) -> Result<()> {
    let body = r#"
        other=$(cards | sed -n 2p)
        recipe_for "$card"
        recipe=this-card verify; within 60 ended
        code_is 7
        says "${other#0000:}"
        says "group"
        untouched || fail "something was unbound"
        is "$other" bochs-drm || fail "the other card was unbound"
        no43 gpus
    "#;
    script(scene, "bad-groups", 120, body)
}

pub(crate) fn holder(scene: &Scene) -> Result<()> {
    let body = r#"
        node=$(ls -d /sys/bus/pci/devices/$card/drm/card* | head -n 1); node=/dev/dri/${node##*/}
        [ -c "$node" ] || fail "no DRM node for $card"
        cp /bin/sleep ./compositor
        ./compositor 300 < "$node" & holder=$!
        verify; within 60 ended
        kill $holder
        code_is 7
        says compositor
        says "$holder"
        says "${node}"
        untouched || fail "something was unbound under a holder"
    "#;
    script(scene, "one-card", 120, body)
}

pub(crate) fn sound_holder(scene: &Scene) -> Result<()> {
    let body = r#"
        sound=$(ls -d /sys/bus/pci/devices/$(audio "$card")/sound/card*/controlC* | head -n 1); node=/dev/snd/${sound##*/}
        [ -c "$node" ] || fail "no sound node for $(audio "$card")"
        cp /bin/sleep ./player
        ./player 300 < "$node" & holder=$!
        verify; within 60 ended
        kill $holder
        code_is 7
        says player
        says "$holder"
        says "${node}"
        untouched || fail "something was unbound under a holder"
    "#;
    script(scene, "one-card", 120, body)
}

pub(crate) fn leased_twice(scene: &Scene) -> Result<()> {
    let body = r#"
        verify; within 60 running
        first=$inner
        no43 verify --no-build --locked "$work/recipes/lab-guest.toml" > second.log 2>&1; code=$?
        [ $code = 7 ] || { cat second.log; fail "the second ended with $code instead of 7"; }
        run=$(ls -t runs | tail -n 1) # the first run's folder, and its name
        grep -qF "lent to 'lab-guest $run' since" second.log || { cat second.log; fail "the second is not told that run $run has the card"; }
        running || fail "the first machine is gone"
        kill -INT $first; within 60 ended
        within 30 untouched
    "#;
    script(scene, "one-card", 240, body)
}

pub(crate) fn memlock(scene: &Scene) -> Result<()> {
    let body = r#"
        memlock=8388608
        verify; within 60 ended
        code_is 8
        says "may lock 8 MiB"
        says "memlock"
        untouched || fail "something was unbound"
        ! running || fail "a QEMU was started"
    "#;
    script(scene, "one-card", 120, body)
}

pub(crate) fn no_such_card(scene: &Scene) -> Result<()> {
    let body = r#"
        recipe_for "7f:1d"
        recipe=this-card verify; within 60 ended
        code_is 7
        says "7f:1d"
        says "$(echo "${card#0000:}" | sed 's/\.0$//')"
        untouched || fail "something was unbound"
    "#;
    script(scene, "one-card", 120, body)
}
