//! Folders of recipes, a lock in which all is pinned, and plans and keys made from both: what the other modules share.

use std::fs;
use std::path::{Path, PathBuf};

use no43_builder::diagnostic::Problems;
use no43_builder::key::Key;
use no43_builder::lock::hashes::HashCache;
use no43_builder::lock::{Lock, SuiteLock};
use no43_builder::media::wim::WimImage;
use no43_builder::media::{Channel, Media};
use no43_builder::plan::{Facts, Plan, gather, plan};
use no43_builder::recipe::{self, Resolved};

pub(crate) const RECIPES: &str = "../recipes";

/// A folder with files in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn load(&self, name: &str, sets: &[&str]) -> Result<Resolved, Problems> {
        recipe::load(&self.path(name), &sets.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// What `load` complains about, without the folder's own name.
    pub(crate) fn complaint(&self, name: &str, sets: &[&str]) -> String {
        self.plain(&self.load(name, sets).expect_err("something should be wrong with it"))
    }

    pub(crate) fn plain(&self, text: &impl ToString) -> String {
        text.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A lock in which everything that the shipped recipes need is pinned.
pub(crate) fn lock() -> Lock {
    let suite = |name: &str, n: u8| {
        let archive = if name.ends_with("-security") { "debian-security" } else { "debian" };
        let suite = SuiteLock {
            mirror: format!("http://mirror.invalid/{archive}"),
            components: vec!["main".to_owned()],
            sha256: format!("{n:02x}").repeat(32),
            size: 1000,
            facts: [("codename".to_owned(), name.to_owned())].into(),
        };
        (name.to_owned(), suite)
    };
    let names = ["bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports"];
    let suites = names.into_iter().zip(1..).map(|(name, n)| suite(name, n)).collect();
    Lock { path: "no43.lock".into(), suites, ..Lock::default() }
}

pub(crate) fn facts(recipe: &Resolved, lock: &Lock) -> Facts {
    let folder = Folder::with(&[("no43-guest", "a guest program")]);
    gather(recipe, lock, &folder.path("no43-guest"), Path::new("/nowhere"), &mut HashCache::in_memory())
        .unwrap()
}

pub(crate) fn plan_of(recipe: &Resolved) -> Plan {
    plan(recipe, &lock(), &facts(recipe, &lock())).unwrap()
}

pub(crate) fn keys(plan: &Plan) -> Vec<&Key> {
    plan.layers.iter().map(|layer| &layer.key).collect()
}

/// A medium that holds what the shipped recipe asks for.
pub(crate) fn media_for(windows: &recipe::Windows) -> Media {
    let image = |(index, edition): (u32, &str)| WimImage {
        index,
        name: format!("{} {edition}", windows.release.product()),
        edition_id: Some(edition.to_owned()),
        installation_type: Some("Client".to_owned()),
        version: Some(
            if windows.release == recipe::Release::Windows11 { "10.0.26200.1" } else { "10.0.19045.1" }
                .to_owned(),
        ),
        languages: vec!["fr-FR".to_owned()],
        default_language: Some("fr-FR".to_owned()),
        ..WimImage::default()
    };
    Media {
        label: "TEST".to_owned(),
        bytes: 5 << 30,
        architecture: "amd64".to_owned(),
        channel: Channel::Retail,
        evaluation_days: None,
        install_file: "sources/install.wim".to_owned(),
        esd: false,
        setup_languages: vec!["fr-FR".to_owned()],
        boot_signers: Vec::new(),
        images: [(1, "Core"), (6, "Professional")].map(image).into(),
    }
}

pub(crate) const GUEST: &str = r#"
name = "guest"
[guest]
os = "debian12"
user = { name = "joe", password = { file = "password" } }
[[card]]
any = true
[[step]]
name = "one"
install = ["vim", "cowsay"]
[[step]]
name = "two"
run = ["/bin/true"]
[[step]]
copy = { from = "notes.txt", to = "/etc/" }
"#;

/// The keys of `GUEST` with `sets`.
pub(crate) fn changed(sets: &[&str]) -> Vec<Key> {
    let folder = Folder::with(&[("guest.toml", GUEST), ("notes.txt", "hello")]);
    keys(&plan_of(&folder.load("guest.toml", sets).unwrap())).into_iter().cloned().collect()
}

/// How many layers keep their key.
pub(crate) fn kept(sets: &[&str]) -> usize {
    changed(&[]).iter().zip(changed(sets)).take_while(|(before, after)| *before == after).count()
}
