//! Inputs as media: what kind of file an input must be, the facts of a Windows ISO, and the recipe checked against them.

use std::path::Path;

use super::{Lock, download, facts};
use crate::diagnostic::{Kind, Place, Problem, Problems};
use crate::media::{self, Media, MediaError, Wanted, systems};
use crate::plan::{DiskBus, NetworkPlan};
use crate::recipe::tree::{Node, Value};
use crate::recipe::{Input, Resolved};
use crate::virtio::{self, VirtioWin};

/// The input that a Windows guest is installed from.
pub const ISO: &str = "iso";
/// The input that a Windows guest's drivers come from.
pub const VIRTIO: &str = "virtio";

/// What an input is, and of a Windows ISO what it holds.
///
/// # Errors
/// An HTML page under the name of something else, a file that is no disc where one is needed, and a medium that installs
/// no Windows for a recipe with a Windows guest.
pub(super) fn look_into(
    recipe: &Resolved,
    name: &str,
    input: &Input,
    path: &Path,
) -> Result<(Option<Media>, Facts), Problem> {
    let mut facts = facts::of(path).unwrap_or_default();
    let kind = facts.get("kind").map(String::as_str);
    let named = input.written.split(['?', '#']).next().unwrap_or_default();
    if kind == Some("HTML page") && !download::wants_page(named) {
        let what = format!("{} is an HTML page", input.written);
        let fix = "a page was saved under the file's name: fetch the file itself";
        return Err(input.spot.problem(Kind::BadValue, what).fix(fix));
    }
    let must = name == ISO && is_windows(recipe);
    match media::inspect(path) {
        Ok(media) => return Ok((Some(media), facts)),
        Err(MediaError::Io { source, .. }) => {
            return Err(super::verify::missing(name, input, path, &source));
        }
        Err(error) if must => return Err(with_fix(input, &error.to_string())),
        Err(_) => {}
    }
    if name == VIRTIO && is_windows(recipe) {
        let found = VirtioWin::open(path).and_then(|iso| iso.facts());
        facts.extend(found.map_err(|error| with_fix(input, &error.to_string()))?);
        return Ok((None, facts));
    }
    let is_disc = kind.is_some_and(|kind| kind.contains("ISO 9660") || kind.contains("UDF"));
    if named.to_ascii_lowercase().ends_with(".iso") && !is_disc {
        let what = format!("{} is no disc image, but {}", input.written, a_kind(kind));
        return Err(input.spot.problem(Kind::BadValue, what).fix("fetch it again, and compare its SHA-256"));
    }
    Ok((None, facts))
}

type Facts = std::collections::BTreeMap<String, String>;

fn a_kind(kind: Option<&str>) -> String {
    kind.map_or_else(|| "something of no known kind".to_owned(), |kind| format!("a {kind}"))
}

/// Errors of media and drivers end with their own fix.
fn with_fix(input: &Input, text: &str) -> Problem {
    let (what, fix) = text
        .split_once("\n    fix   ")
        .unwrap_or((text, "fetch it again, and compare its SHA-256 with the publisher's"));
    input.spot.problem(Kind::BadValue, what).fix(fix)
}

/// The facts of a medium as texts, to say what changed.
pub(super) fn facts(media: &Media) -> Facts {
    let editions = media.images.iter().filter_map(|image| image.edition_id.clone());
    let mut languages: Vec<String> = media.images.iter().flat_map(|image| image.languages.clone()).collect();
    languages.sort();
    languages.dedup();
    let channel = serde_json::to_value(media.channel).ok();
    let channel = channel.and_then(|channel| channel.as_str().map(str::to_owned)).unwrap_or_default();
    [
        ("windows", media.title()),
        ("architecture", media.architecture.clone()),
        ("sold as", channel),
        ("editions", editions.collect::<Vec<_>>().join(" ")),
        ("languages", languages.join(" ")),
        ("setup speaks", media.setup_languages.join(" ")),
        ("signed by", media.boot_signers.join(" and ")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

impl Lock {
    /// The installation medium of a recipe, as far as it is locked.
    #[must_use]
    pub fn media(&self, recipe: &Resolved) -> Option<&Media> {
        self.inputs.get(&recipe.recipe.name)?.get(ISO)?.media.as_ref()
    }
}

/// What a recipe with a Windows guest asks for, against what its medium holds; nothing for other guests.
///
/// # Errors
/// Each thing that the medium cannot give, at the key that asks for it.
pub(crate) fn check(recipe: &Resolved, lock: &Lock) -> Result<(), Problems> {
    if !is_windows(recipe) {
        return Ok(());
    }
    let mut problems = Problems::default();
    let os = || text(node(recipe, "guest.os"));
    match (recipe.recipe.inputs.get(ISO), lock.media(recipe)) {
        (None, _) => {
            let what = format!("{} is installed from an ISO, and none is named", os().unwrap_or("Windows"));
            let problem = Problem::new(Kind::Missing, "inputs", what).at(Place::whole(&recipe.path));
            problems.push(problem.fix("add [inputs] iso = { path = \"…\" }"));
        }
        (Some(input), None) => {
            let problem = input.spot.problem(Kind::NotLocked, "the lock holds no facts of this ISO");
            problems.push(problem.fix(format!("run no43 lock --update {ISO}")));
        }
        (Some(_), Some(media)) => {
            // A default is no wish: what was not written is taken from the medium.
            let written = |key| node(recipe, key).filter(|node| node.origin.place().is_some());
            let wanted = Wanted {
                os: os(),
                edition: text(written("guest.edition")),
                language: text(written("guest.language")),
                product_key: node(recipe, "guest.product-key").is_some(),
            };
            for mismatch in media.check(wanted) {
                let place = node(recipe, mismatch.key).and_then(|node| node.origin.place());
                let problem = Problem::new(Kind::Conflict, mismatch.key, mismatch.what).fix(mismatch.fix);
                problems.push(problem.at(place.unwrap_or_else(|| Place::whole(&recipe.path))));
            }
        }
    }
    check_drivers(recipe, lock, &mut problems);
    problems.into_result()
}

/// The drivers that Setup needs to see the machine's disk and network.
fn check_drivers(recipe: &Resolved, lock: &Lock, problems: &mut Problems) {
    let system = text(node(recipe, "guest.os")).and_then(systems::named);
    let Some((input, system)) = recipe.recipe.inputs.get(VIRTIO).zip(system) else { return };
    let locked = lock.inputs.get(&recipe.recipe.name).and_then(|inputs| inputs.get(VIRTIO));
    let Some(locked) = locked else { return };
    let disk = (recipe.recipe.machine.disk_bus == DiskBus::Virtio).then_some(&virtio::DISK);
    let network = (recipe.recipe.network != NetworkPlan::None).then_some(&virtio::NETWORK);
    for driver in [disk, network].into_iter().flatten() {
        let Some(held) = locked.facts.get(driver.folder) else {
            let what = "the lock does not say which drivers this ISO holds";
            let fix = format!("run no43 lock --update {VIRTIO}");
            return problems.push(input.spot.problem(Kind::NotLocked, what).fix(fix));
        };
        if !held.split(", ").any(|held| held.eq_ignore_ascii_case(system.virtio)) {
            let what = format!("it carries {} for {held}, the recipe says {}", driver.folder, system.name);
            let instead = driver.instead.map_or_else(String::new, |instead| format!(", or set {instead}"));
            let fix = format!("use an ISO with {}/{}/amd64{instead}", driver.folder, system.virtio);
            problems.push(input.spot.problem(Kind::Conflict, what).fix(fix));
        }
    }
}

fn is_windows(recipe: &Resolved) -> bool {
    text(node(recipe, "guest.os")).is_some_and(|os| os.starts_with("windows"))
}

fn node<'a>(recipe: &'a Resolved, path: &str) -> Option<&'a Node> {
    let mut parts = path.split('.');
    let mut node = recipe.tree.get(parts.next()?)?;
    for part in parts {
        let Value::Table(table) = &node.value else { return None };
        node = table.get(part)?;
    }
    Some(node)
}

fn text(node: Option<&Node>) -> Option<&str> {
    match &node?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::download::tests::{Server, reply};
    use super::super::hashes::HashCache;
    use super::super::{Tools, Update};
    use super::*;
    use crate::media::inspect::tests::{Disc, XML};
    use crate::media::wim;
    use crate::recipe::{self, tree};

    /// A recipe that takes this ISO. Its tree is that of a Windows guest, whatever this version builds.
    fn recipe(disc: &Disc, iso: &str, guest: &str) -> Resolved {
        let path = disc.dir.path().join("guest.toml");
        fs::write(&path, format!("[guest]\nos = \"debian12\"\n[inputs]\niso = {iso}\n")).unwrap();
        let mut recipe = recipe::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        let place: Arc<Path> = Arc::from(path.as_path());
        recipe.tree = tree::parse(&format!("[guest]\n{guest}\n"), &place).unwrap();
        recipe
    }

    fn lock(disc: &Disc, recipe: &Resolved, update: &Update) -> Result<(Lock, String), String> {
        let plain = |text: String| text.replace(&disc.dir.path().display().to_string(), "DIR");
        let mut tools =
            Tools::new(disc.dir.path().join("inputs"), HashCache::in_memory()).with_host_sources(vec![]);
        let mut lock = Lock::load_beside(&recipe.path).unwrap();
        match resolve_inputs(&mut lock, recipe, update, &mut tools) {
            Ok(changes) => {
                lock.save().unwrap();
                Ok((Lock::load_beside(&recipe.path).unwrap(), plain(changes)))
            }
            Err(problems) => Err(plain(problems)),
        }
    }

    /// The recipe's suites are not asked for here: what is wrong with them is left out.
    fn resolve_inputs(
        lock: &mut Lock,
        recipe: &Resolved,
        update: &Update,
        tools: &mut Tools,
    ) -> Result<String, String> {
        let mut recipe = recipe.clone();
        recipe.recipe.guest.suite = "none-updates".into();
        match lock.resolve(&recipe, update, tools) {
            Ok(changes) => Ok(changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            Err(problems) => {
                let inputs = problems.all().iter().filter(|problem| problem.key.starts_with("inputs"));
                let lines: Vec<String> = inputs.map(ToString::to_string).collect();
                if lines.is_empty() { Ok(String::new()) } else { Err(lines.join("\n")) }
            }
        }
    }

    const WINDOWS: &str = "os = \"windows10\"";

    #[test]
    fn the_lock_keeps_what_the_medium_holds() {
        let disc = Disc::windows();
        let iso = disc.iso();
        let recipe = recipe(&disc, &format!("{{ path = {iso:?} }}"), WINDOWS);
        let (lock, _) = lock(&disc, &recipe, &Update::Missing).unwrap();
        let media = lock.media(&recipe).expect("locked");
        assert_eq!(*media, media::inspect(&iso).unwrap(), "through the file and back");
        assert_eq!(check(&recipe, &lock), Ok(()));
        // What changes in the medium is said in words.
        let mut newer = media.clone();
        newer.images[0].version = Some("10.0.19045.9999".into());
        let (old, new) = (facts(media), facts(&newer));
        assert_eq!(old["windows"], "Windows 10 (10.0.19045.2965)");
        assert_eq!(new["windows"], "Windows 10 (10.0.19045.9999)");
        assert_eq!(old["editions"], "Core Professional");
    }

    #[test]
    fn an_address_is_fetched_once_and_its_medium_locked() {
        let disc = Disc::windows();
        let bytes = fs::read(disc.iso()).unwrap();
        let length = format!("Content-Length: {}\r\n", bytes.len());
        let server = Server::new(Box::new(move |_, _| reply("200 OK", &length, &bytes)));
        let url = server.url("/win.iso");
        let recipe = recipe(&disc, &format!("{{ url = {url:?} }}"), WINDOWS);
        let (locked, _) = lock(&disc, &recipe, &Update::Missing).unwrap();
        assert_eq!(check(&recipe, &locked), Ok(()));
        let entry = &locked.inputs["guest"][ISO];
        let kept = disc.dir.path().join("inputs").join(&entry.sha256);
        assert_eq!(fs::metadata(&kept).unwrap().len(), entry.size);
        lock(&disc, &recipe, &Update::Missing).unwrap();
        assert_eq!(server.requests(), ["/win.iso from 0"]);
        let left: Vec<_> = fs::read_dir(disc.dir.path().join("inputs")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_the_medium_lacks_is_said_at_the_recipes_keys() {
        let disc = Disc::windows();
        let iso = format!("{{ path = {:?} }}", disc.iso());
        let guest = "os = \"windows11\"\nedition = \"Enterprise\"\nlanguage = \"de-DE\"";
        let recipe = recipe(&disc, &iso, guest);
        let (lock, _) = lock(&disc, &recipe, &Update::Missing).unwrap();
        let said = check(&recipe, &lock).unwrap_err().to_string();
        let said = said.replace(&disc.dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(said, @r#"
        DIR/guest.toml:2:6: guest.os: the recipe says Windows 11, the media is Windows 10 (build 19045)
            fix   write os = "windows10", or take another ISO
        DIR/guest.toml:3:11: guest.edition: the media has no edition 'Enterprise'; it holds Core ("Windows 10 Famille"), Professional ("Windows 10 Professionnel")
            fix   write edition = "Core", or take another ISO
        DIR/guest.toml:4:12: guest.language: de-DE is not on the media: Core ("Windows 10 Famille") has fr-FR
            fix   write language = "fr-FR", or take the ISO in de-DE
        "#);
        let none = check(&recipe, &Lock::default()).unwrap_err().to_string();
        assert!(none.contains("no43 lock --update iso"), "{none}");
    }

    #[test]
    fn drivers_for_another_windows_are_named_before_anything_starts() {
        let disc = Disc::windows();
        let mut recipe = recipe(&disc, &format!("{{ path = {:?} }}", disc.iso()), WINDOWS);
        let (mut lock, _) = lock(&disc, &recipe, &Update::Missing).unwrap();
        let iso = recipe.recipe.inputs[ISO].clone();
        let virtio = Input { spot: recipe::Spot { key: "inputs.virtio".into(), place: None }, ..iso };
        recipe.recipe.inputs.insert(VIRTIO.into(), virtio);
        let locked = lock.inputs.values_mut().next().unwrap();
        let mut entry = locked[ISO].clone();
        entry.media = None;
        entry.facts =
            [("viostor", "w11, 2k22"), ("NetKVM", "w10")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        locked.insert(VIRTIO.into(), entry);
        let said = check(&recipe, &lock).unwrap_err().to_string();
        insta::assert_snapshot!(said, @r#"
        inputs.virtio: it carries viostor for w11, 2k22, the recipe says Windows 10
            fix   use an ISO with viostor/w10/amd64, or set machine.disk-bus = "ahci"
        "#);
        recipe.recipe.machine.disk_bus = DiskBus::Ahci;
        assert_eq!(check(&recipe, &lock), Ok(()));
    }

    #[test]
    fn what_is_no_medium_is_never_locked_as_one() {
        let disc = Disc::empty();
        let file = |name: &str, contents: &[u8]| -> PathBuf {
            let path = disc.dir.path().join(name);
            fs::write(&path, contents).unwrap();
            path
        };
        let refused = |path: PathBuf, guest: &str| {
            let recipe = recipe(&disc, &format!("{{ path = {path:?} }}"), guest);
            lock(&disc, &recipe, &Update::All).map(|_| ()).unwrap_err()
        };
        let linux = "os = \"debian12\"";
        let said = [
            refused(file("page.iso", b"<html><body>404"), linux),
            refused(file("page.exe", b" \n<!doctype HTML>"), linux),
            refused(file("words.iso", b"just words"), linux),
            refused(file("bare.esd", &wim::tests::file(XML)), WINDOWS),
            refused(disc.dir.path().join("none.iso"), WINDOWS),
        ];
        insta::assert_snapshot!(said.join("\n"), @r"
        DIR/guest.toml:4:16: inputs.iso.path: DIR/page.iso is an HTML page
            fix   a page was saved under the file's name: fetch the file itself
        DIR/guest.toml:4:16: inputs.iso.path: DIR/page.exe is an HTML page
            fix   a page was saved under the file's name: fetch the file itself
        DIR/guest.toml:4:16: inputs.iso.path: DIR/words.iso is no disc image, but something of no known kind
            fix   fetch it again, and compare its SHA-256
        DIR/guest.toml:4:16: inputs.iso.path: DIR/bare.esd is not a Windows ISO, but a bare WIM or ESD file
            fix   an ISO is needed, since Setup itself is started from it
        DIR/guest.toml:4:16: inputs.iso.path: there is no file DIR/none.iso
            fix   put the file there, or write where it is
        ");
    }
}
