//! The host stays awake while a card is lent, and waits for guests before it shuts down: logind's inhibitors.
//!
//! Two locks: a *block* of sleep and idleness, and a *delay* of the shutdown. When the host is about to shut down, logind says
//! so and waits for the delay to be let go of, for at most `InhibitDelayMaxSec` (5 s unless somebody has set it).

use std::sync::mpsc::Sender;
use std::time::Duration;

use zbus::blocking::{Connection, Proxy, connection};
use zbus::zvariant::OwnedFd;

use super::control::Wake;

/// logind answers at once; a bus that does not is as good as none.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// What logind waits if it does not say.
const USUAL_DELAY: Duration = Duration::from_secs(5);
/// Of the delay, for what comes after the guest: QEMU's caches, the reset of a card, its driver.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// A shorter delay is of no use to a guest: it gets what the service manager gives.
const USEFUL_DELAY: Duration = Duration::from_secs(30);

/// Locks that are held until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Guard {
    #[expect(dead_code, reason = "an open descriptor is the lock")]
    locks: Vec<OwnedFd>,
}

/// How long a guest may take when the host shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// For the guest.
    pub(super) limit: Duration,
    /// At its end the machine is switched off; else whoever ends processes decides.
    pub(super) then_off: bool,
}

impl Patience {
    fn of(delay: Duration) -> Self {
        match delay >= USEFUL_DELAY {
            true => Patience { limit: delay - AFTERWARDS, then_off: true },
            // systemd gives a service 90 s
            false => Patience { limit: Duration::from_secs(80), then_off: false },
        }
    }
}

/// Takes the locks for a machine; `cards` are those that are lent to it. Also says in words what could not be had.
pub(super) fn hold(name: &str, cards: &[String], wake: &Sender<Wake>) -> (Guard, Vec<String>) {
    match try_hold(name, cards, wake) {
        Ok(held) => held,
        Err(error) => {
            let awake = if cards.is_empty() { "" } else { "nothing keeps this host from sleeping, and " };
            let said = crate::words::clean_to(&error.to_string(), 200);
            let what = format!(
                "no logind here ({said}): {awake}when the host shuts down, the guest is not waited for unless a service manager does"
            );
            (Guard::default(), vec![what])
        }
    }
}

fn try_hold(name: &str, cards: &[String], wake: &Sender<Wake>) -> zbus::Result<(Guard, Vec<String>)> {
    let connection = connection::Builder::system()?.method_timeout(ANSWER_LIMIT).build()?;
    let manager = manager(&connection)?;
    let mut said = Vec::new();
    let mut locks = Vec::new();
    let inhibit = |what: &str, why: &str, mode: &str| -> zbus::Result<OwnedFd> {
        manager.call("Inhibit", &(what, "no43", why, mode))
    };
    // heard from before the lock is taken, so that no shutdown falls in between
    let delay = manager.get_property::<u64>("InhibitDelayMaxUSec").map_or(USUAL_DELAY, Duration::from_micros);
    listen(&connection, Patience::of(delay), wake.clone())?;
    locks.push(inhibit("shutdown", &format!("the guest '{name}' is shut down first"), "delay")?);
    if delay < USEFUL_DELAY {
        said.push(format!(
            "when this host shuts down, logind waits only {} for guests: sudo no43 host setup gives them 120 s",
            crate::words::limit(delay)
        ));
    }
    if !cards.is_empty() {
        let why = format!("{} lent to '{name}'", cards.join(", "));
        // one by one: for several at once logind asks polkit for another right than for each
        for what in ["sleep", "idle"] {
            match inhibit(what, &why, "block") {
                Ok(lock) => locks.push(lock),
                Err(error) => said.push(format!(
                    "logind does not let this user keep the host from {what} ({}): a card that sleeps under a guest is lost to it",
                    crate::words::clean_to(&error.to_string(), 200)
                )),
            }
        }
    }
    Ok((Guard { locks }, said))
}

fn manager(connection: &Connection) -> zbus::Result<Proxy<'static>> {
    Proxy::new(
        connection,
        "org.freedesktop.login1",
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
    )
}

/// A thread that waits for the one signal; it ends with the process or the bus.
fn listen(connection: &Connection, patience: Patience, wake: Sender<Wake>) -> zbus::Result<()> {
    let mut signals = manager(connection)?.receive_signal("PrepareForShutdown")?;
    let wait = move || {
        let begins = |message: &zbus::Message| message.body().deserialize::<bool>().unwrap_or(false);
        if signals.any(|message| begins(&message)) {
            let _ = wake.send(Wake::HostShutdown(patience));
        }
    };
    let _ = std::thread::Builder::new().name("logind".into()).stack_size(256 << 10).spawn(wait);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_shared_between_the_guest_and_what_comes_after_it() {
        let of = |seconds| Patience::of(Duration::from_secs(seconds));
        assert_eq!(of(120), Patience { limit: Duration::from_secs(110), then_off: true });
        assert_eq!(of(30), Patience { limit: Duration::from_secs(20), then_off: true });
        assert!(!of(5).then_off);
    }
}
