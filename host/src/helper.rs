//! The small helper that runs as root for the members of one group: one request, one answer, one line in the log.
//!
//! It is started by systemd on the first connection ([`listener`] takes the socket over), or by hand with a socket of its own.
//! Who asks is what the kernel says about the other end, never what the request says. What may be asked for is in `verb`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::binding::{Limits, Place};
use crate::extras::allowed_bridges;
use crate::raw;
use crate::verb::{self, Caller, Reply, Verb};
use crate::{BindError, PciAddress, Roots, StateDir};

/// Where the socket is, unless `$NO43_HELPER` says otherwise.
pub const SOCKET: &str = "/run/no43/helper.sock";

/// For the whole of a request to come: it is sent at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// At once; one bind takes seconds, and a host has few cards.
const MOST_CONNECTIONS: usize = 16;
/// A helper that systemd starts when it is wanted need not stay.
const IDLE: Duration = Duration::from_secs(60);

/// What a helper serves.
#[derive(Clone, Debug)]
pub struct Helper {
    /// Members of this group may ask; root always may.
    pub group: u32,
    /// This machine's trees.
    pub roots: Roots,
    /// Where the journal is.
    pub state: StateDir,
    /// Which bridges may get taps: a file with a name a line, of root's.
    pub bridges: PathBuf,
    /// How long the kernel may take.
    pub limits: Limits,
    /// Ends when nobody has asked for this long.
    pub idle: Option<Duration>,
}

impl Helper {
    /// The helper of this machine. `by_systemd`: it ends when it is idle, because it is started again.
    pub fn of_this_host(group: u32, by_systemd: bool) -> Self {
        Helper {
            group,
            roots: Roots::real(),
            state: StateDir::of_system(),
            bridges: crate::privilege::BRIDGES.into(),
            limits: Limits::default(),
            idle: by_systemd.then_some(IDLE),
        }
    }
}

/// The socket that this user's commands ask.
pub fn socket() -> PathBuf {
    std::env::var_os("NO43_HELPER")
        .filter(|path| !path.is_empty())
        .map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// Whether there is a socket that this user may connect to. Whether somebody answers is seen when it is asked.
pub(crate) fn is_open(socket: &Path) -> bool {
    let is_socket = fs::metadata(socket).is_ok_and(|facts| facts.file_type().is_socket());
    is_socket && rustix::fs::access(socket, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Sends one request to a helper and returns its answer, one line of JSON each.
///
/// # Errors
/// Nobody listens, or there is no answer within `limit`.
pub fn ask(socket: &Path, request: &str, limit: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    // a helper that refuses a request before it has read all of it hangs up, and its answer says why
    let sent = stream.write_all(format!("{request}\n").as_bytes());
    let mut line = String::new();
    let read = BufReader::new(stream.take(1 << 20)).read_line(&mut line);
    match (read, sent) {
        (Ok(0) | Err(_), Err(error)) => return Err(error),
        (read, _) => read?,
    };
    match line.trim_end() {
        "" => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        text => Ok(text.to_owned()),
    }
}

/// The socket that systemd hands over, if it does, else a new one at `path` for `group`; and whether systemd did.
///
/// # Errors
/// Another helper listens there, or the socket cannot be made.
pub fn listener(path: &Path, group: u32) -> io::Result<(UnixListener, bool)> {
    if let Some(listener) = from_systemd()? {
        return Ok((listener, true));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another helper listens on {}", path.display()),
        ));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::os::unix::fs::chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok((listener, false))
}

/// The protocol of socket activation: `LISTEN_PID` is us, and the first descriptor is number 3.
fn from_systemd() -> io::Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        Some(1) => Ok(Some(UnixListener::from(raw::first_passed_descriptor()?))),
        other => Err(io::Error::other(format!("systemd hands over {other:?} sockets instead of one"))),
    }
}

/// Serves until idle, or for ever. `log` gets one line for each request.
///
/// # Errors
/// The socket broke.
pub fn serve(listener: &UnixListener, helper: &Helper, log: &(dyn Fn(&str) + Sync)) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let open = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        loop {
            if !wait(listener, helper.idle)? {
                if open.load(Ordering::SeqCst) == 0 {
                    return Ok(());
                }
                continue;
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => continue,
                Err(e) => return Err(e),
            };
            if open.load(Ordering::SeqCst) >= MOST_CONNECTIONS {
                log("a request was turned away: too many at once");
                continue;
            }
            open.fetch_add(1, Ordering::SeqCst);
            let open = &open;
            scope.spawn(move || {
                serve_one(&stream, helper, log);
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    })
}

/// `false` when nobody came within the limit.
fn wait(listener: &UnixListener, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], limit.as_ref()) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn serve_one(stream: &UnixStream, helper: &Helper, log: &(dyn Fn(&str) + Sync)) {
    let began = Instant::now();
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else { return };
    let caller = Caller { uid: peer.uid.as_raw(), gid: peer.gid.as_raw() };
    let who = format!("uid={} pid={}", caller.uid, peer.pid.as_raw_nonzero());
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(REQUEST_LIMIT));
    let _ = stream.set_write_timeout(Some(REQUEST_LIMIT));
    let mut line = String::new();
    let longest = u64::try_from(verb::LONGEST).unwrap_or(u64::MAX) + 2;
    let read = BufReader::new(stream.take(longest)).read_line(&mut line);
    let request = match read {
        Ok(0) => return,
        Ok(_) => verb::read(line.trim_end()),
        Err(e) => Err(BindError::Refused { why: format!("the request could not be read: {e}") }),
    };
    let what = request.as_ref().map_or_else(|_| "something else".to_owned(), words);
    let done =
        may_ask(stream, caller, helper).and(request).and_then(|request| answer(request, caller, helper));
    let took = began.elapsed().as_millis();
    match &done {
        Ok(_) => log(&format!("{who} {what}: done in {took} ms")),
        Err(error) => log(&format!("{who} {what}: {}", error.to_string().escape_debug())),
    }
    let reply = done.unwrap_or_else(|error| Reply::Failed { error });
    let mut text = serde_json::to_string(&reply).unwrap_or_default();
    text.push('\n');
    let mut stream = stream;
    let _ = stream.write_all(text.as_bytes());
}

fn answer(request: Verb, caller: Caller, helper: &Helper) -> Result<Reply, BindError> {
    let place = Place { state: &helper.state, roots: &helper.roots, limits: helper.limits };
    verb::carry_out(request, caller, &place, &allowed_bridges(&helper.bridges))
}

/// The socket's permissions say the same; they may be wrong.
fn may_ask(stream: &UnixStream, caller: Caller, helper: &Helper) -> Result<(), BindError> {
    let groups = || raw::peer_groups(stream.as_fd()).unwrap_or_default();
    match caller.uid == 0 || caller.gid == helper.group || groups().contains(&helper.group) {
        true => Ok(()),
        false => Err(BindError::Refused {
            why: format!("user {} is not in the group {} that the helper serves", caller.uid, helper.group),
        }),
    }
}

/// A request in the log.
fn words(verb: &Verb) -> String {
    let list = |functions: &[PciAddress]| {
        functions.iter().fold(String::new(), |mut text, f| {
            let _ = write!(text, " {f}");
            text
        })
    };
    match verb {
        Verb::Hello => "hello".into(),
        Verb::Bind { functions, lease, holder, .. } => {
            format!("bind{} lease={lease} for '{}'", list(functions), holder.escape_debug())
        }
        Verb::Release { functions, lease } => {
            format!("release{} lease={}", list(functions), lease.as_deref().unwrap_or("-"))
        }
        Verb::Hugepages { pages, lease, .. } => format!("hugepages {pages} lease={lease}"),
        Verb::Network { device, lease, .. } => format!("{} lease={lease}", device.words()),
    }
}
