//! Instances that start with the host: a unit of systemd for all of them, and a link for each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The unit's file; `no43@NAME.service` is one instance.
const TEMPLATE: &str = "no43@.service";

/// What names other places than the usual ones in a shell; a service has to be told.
const PLACES: &[&str] = &[
    "NO43_STORE",
    "NO43_INSTANCES",
    "NO43_STATE",
    "NO43_GUEST",
    "NO43_GUEST_WINDOWS",
    "NO43_RECIPES",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
];

/// Where a user's own units are, or root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autostart {
    /// Such as `~/.config/systemd/user`.
    pub dir: PathBuf,
    /// What pulls the units in.
    target: &'static str,
    root: bool,
    /// Variables of the environment that name other places than the usual ones.
    places: Vec<(&'static str, PathBuf)>,
}

impl Autostart {
    /// For this user: units of the user's own manager, of the system's for root.
    ///
    /// # Errors
    /// There is no home.
    pub fn of_this_user() -> io::Result<Self> {
        let places = places();
        if rustix::process::geteuid().is_root() {
            let dir = "/etc/systemd/system".into();
            return Ok(Self { dir, target: "multi-user.target", root: true, places });
        }
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = named("XDG_CONFIG_HOME").or_else(|| Some(named("HOME")?.join(".config")));
        let config = config.ok_or_else(|| io::Error::other("neither XDG_CONFIG_HOME nor HOME is set"))?;
        Ok(Self { dir: config.join("systemd/user"), target: "default.target", root: false, places })
    }

    /// The unit's text. `no43` is this program.
    pub fn unit(&self, no43: &Path) -> String {
        let (no43, target) = (quoted(&no43.to_string_lossy()).replace('$', "$$"), self.target);
        // a user by name has a home; a service of root's has none
        let memlock = if self.root { "User=root\nLimitMEMLOCK=infinity\n" } else { "" };
        let place = |(name, path): &(&str, PathBuf)| quoted(&format!("{name}={}", path.display()));
        let places: String = self.places.iter().map(|one| format!("Environment={}\n", place(one))).collect();
        format!(
            "# Written by 'no43 instance autostart'; 'no43 instance autostart NAME --off' removes the link of one instance.\n\
             [Unit]\n\
             Description=no43 instance %i\n\
             \n\
             [Service]\n\
             Type=exec\n\
             ExecStart={no43} run %i\n\
             # the guest first; one that does not shut down is switched off, so that its cards come back\n\
             ExecStop=-{no43} stop %i --limit 100s\n\
             ExecStop=-{no43} stop %i --force\n\
             TimeoutStopSec=150\n\
             {memlock}{places}\
             \n\
             [Install]\n\
             WantedBy={target}\n"
        )
    }

    fn link(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}.wants", self.target)).join(format!("no43@{name}.service"))
    }

    /// Whether an instance starts with the host.
    pub fn is_on(&self, name: &str) -> bool {
        self.link(name).is_symlink()
    }

    /// Writes the unit, and the link that `systemctl enable` would make.
    ///
    /// # Errors
    /// What could not be written.
    pub fn on(&self, name: &str, no43: &Path) -> io::Result<()> {
        let (unit, link) = (self.dir.join(TEMPLATE), self.link(name));
        fs::create_dir_all(link.parent().unwrap_or(&self.dir))?;
        let aside = self.dir.join(".no43-new~");
        fs::write(&aside, self.unit(no43))?;
        fs::rename(&aside, &unit)?;
        match std::os::unix::fs::symlink(&unit, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the link. The unit stays for the others.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn off(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.link(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// As this process was told of them. A service starts in another folder.
fn places() -> Vec<(&'static str, PathBuf)> {
    let told = |name: &&'static str| {
        let path = std::env::var_os(name).filter(|value| !value.is_empty())?;
        Some((*name, std::path::absolute(path).ok()?))
    };
    PLACES.iter().filter_map(told).collect()
}

/// One word of a unit's line; of a command's, `$` is doubled, too. Source: systemd.syntax(7), "QUOTING", systemd.unit(5),
/// "SPECIFIERS", and systemd.service(5), "COMMAND LINES".
fn quoted(word: &str) -> String {
    let escaped: String = word
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            '%' => "%%".to_owned(),
            '\n' => "\\n".to_owned(),
            c => c.to_string(),
        })
        .collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:+,@".contains(c);
    if word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_and_off_leave_one_unit_and_no_link() {
        let dir = tempfile::tempdir().expect("a folder");
        let places = vec![("NO43_STORE", PathBuf::from("/srv/big disk/50%"))];
        let units = Autostart { dir: dir.path().join("user"), target: "default.target", root: false, places };
        for _ in 0..2 {
            units.on("games", Path::new("/usr/bin/no43")).expect("it is written");
        }
        assert!(units.is_on("games") && !units.is_on("other"));
        let text = fs::read_to_string(units.link("games")).expect("the link leads to the unit");
        insta::assert_snapshot!(text, @r#"
        # Written by 'no43 instance autostart'; 'no43 instance autostart NAME --off' removes the link of one instance.
        [Unit]
        Description=no43 instance %i

        [Service]
        Type=exec
        ExecStart=/usr/bin/no43 run %i
        # the guest first; one that does not shut down is switched off, so that its cards come back
        ExecStop=-/usr/bin/no43 stop %i --limit 100s
        ExecStop=-/usr/bin/no43 stop %i --force
        TimeoutStopSec=150
        Environment="NO43_STORE=/srv/big disk/50%%"

        [Install]
        WantedBy=default.target
        "#);
        units.off("games").expect("it is removed");
        units.off("games").expect("twice is fine");
        assert!(!units.is_on("games") && units.dir.join(TEMPLATE).exists());
    }
}
