//! The supervisor's socket: one JSON line asks, lines answer. Only its owner can reach it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::time::Duration;

use super::event::{Answer, Ask, Happened};
use super::hub::Hub;
use super::logind::Patience;

/// A request is never longer.
const ASK_MAX: u64 = 64 << 10;
/// A picture of a screen, or QEMU's answer about a device, is there within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What wakes the supervisor.
#[derive(Debug)]
pub(super) enum Wake {
    /// QEMU said something.
    Qmp(no43_machine::Event),
    /// QEMU's connection has ended.
    Gone,
    /// Somebody asks.
    Ask(Ask, SyncSender<Answer>),
    /// The guest's agent answers, since so many milliseconds; `None`: it did not within the limit.
    Ready(Option<u64>),
    /// The command that this machine was started for is gone.
    OwnerGone,
    /// logind says that this host shuts down, and waits for us.
    HostShutdown(Patience),
    /// This process was asked to end: a service that is stopped, a host that shuts down.
    Signal,
}

/// What connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hub: Hub,
    pub(super) wake: Sender<Wake>,
    /// Nobody wants this machine any more; looked at while it starts.
    pub(super) give_up: AtomicBool,
    /// From now on `wake` is listened to.
    pub(super) serves: AtomicBool,
}

/// Listens on `path` and serves every connection on a thread of its own.
pub(super) fn serve(path: &Path, shared: &Arc<Shared>) -> std::io::Result<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let shared = Arc::clone(shared);
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            let _ =
                std::thread::Builder::new().stack_size(256 << 10).spawn(move || connection(&stream, &shared));
        }
    };
    std::thread::Builder::new().name("control".into()).stack_size(256 << 10).spawn(accept)?;
    Ok(())
}

fn connection(stream: &UnixStream, shared: &Shared) {
    let Ok(reader) = stream.try_clone() else { return };
    let mut reader = BufReader::with_capacity(4096, reader);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(ASK_MAX).read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) || !line.ends_with(b"\n") {
            break;
        }
        let answer = match serde_json::from_slice::<Ask>(&line) {
            Err(error) => Answer::No(format!("not a request: {error}")),
            Ok(Ask::Follow { past }) => {
                stream_events(stream, shared, past);
                break;
            }
            Ok(ask) => pass_on(ask, shared),
        };
        let Ok(mut text) = serde_json::to_vec(&answer) else { break };
        text.push(b'\n');
        if (&mut &*stream).write_all(&text).is_err() {
            break;
        }
    }
}

fn pass_on(ask: Ask, shared: &Shared) -> Answer {
    let (sender, receiver) = sync_channel(1);
    if !shared.serves.load(Ordering::SeqCst) {
        if !matches!(ask, Ask::Stop { .. }) {
            return Answer::No("the machine is still starting".into());
        }
        shared.give_up.store(true, Ordering::SeqCst);
        // a start that is past its last look at that finds the request when it begins to watch
        let _ = shared.wake.send(Wake::Ask(ask, sender));
        return Answer::Ok;
    }
    if shared.wake.send(Wake::Ask(ask, sender)).is_err() {
        return Answer::No("the machine has ended".into());
    }
    receiver
        .recv_timeout(ANSWER_LIMIT)
        .unwrap_or_else(|_| Answer::No("the machine has ended, or hangs".into()))
}

/// Until the run is over or the follower goes.
fn stream_events(mut stream: &UnixStream, shared: &Shared, past: bool) {
    let (mut kept, coming) = shared.hub.follow();
    if !past {
        kept.clear();
    }
    let first = Hub::line(0, Happened::Followed);
    for line in std::iter::once(first).chain(kept).chain(coming) {
        if stream.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_stop_while_a_machine_starts_is_heard_by_the_start_and_by_whoever_watches_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let (wake, woken) = channel();
        let shared = Shared {
            hub: Hub::new(&dir.path().join("events.jsonl")),
            wake,
            give_up: AtomicBool::new(false),
            serves: AtomicBool::new(false),
        };
        let shot = Ask::Shot { path: dir.path().join("shot.png") };
        assert!(matches!(pass_on(shot, &shared), Answer::No(_)));
        assert!(woken.try_recv().is_err());
        assert!(matches!(pass_on(Ask::Stop { limit_s: 0, force: true }, &shared), Answer::Ok));
        assert!(shared.give_up.load(Ordering::SeqCst));
        assert!(matches!(woken.try_recv(), Ok(Wake::Ask(Ask::Stop { force: true, .. }, _))));
    }
}
