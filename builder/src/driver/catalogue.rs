//! The catalogue `drivers.toml`: packages by name, each with its version, where it is, and what it must hash to.
//!
//! A matrix of drivers names packages (`--set driver.package=472.12`) instead of writing an input for each.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Package, Version};
use crate::diagnostic::{Kind, Place, Problem};
use crate::key::is_sha256_hex;

/// The file's name, beside the recipes.
pub const FILE_NAME: &str = "drivers.toml";

const HEAD: &str = "\
# Driver packages that recipes of this folder can name: driver.package = \"NAME\" or a version. See: no43 driver ls
";

/// A list is read up to here.
const LIMIT: u64 = 4 << 20;

/// The packages of one folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Where it is, whether or not it exists yet.
    pub path: PathBuf,
    /// In the order of the file.
    pub entries: Vec<Entry>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    /// As recipes call it.
    pub name: String,
    /// The driver's version.
    pub version: Version,
    /// Where it is.
    #[serde(flatten)]
    pub from: Origin,
    /// The path or URL as it stands in the file.
    #[serde(skip)]
    pub written: String,
    /// What it must hash to; lower case.
    pub sha256: String,
}

/// Where a package is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A file of this host; a relative one counted from the catalogue.
    Path(PathBuf),
    /// Fetched by the lock.
    Url(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    driver: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    version: toml::Spanned<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    sha256: String,
}

impl Catalogue {
    /// The catalogue beside a recipe; an empty one if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or says something else.
    pub fn beside(recipe: &Path) -> Result<Self, Problem> {
        Self::load(&recipe.with_file_name(FILE_NAME))
    }

    /// The catalogue at `path`; an empty one if there is none.
    ///
    /// # Errors
    /// As [`Catalogue::beside`].
    pub fn load(path: &Path) -> Result<Self, Problem> {
        let failed = |what: String| Problem::new(Kind::File, "", what).at(Place::whole(path));
        let text = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), entries: Vec::new() });
            }
            Ok(meta) if meta.len() > LIMIT => {
                return Err(failed(format!("it has {} bytes, more than {LIMIT}", meta.len())));
            }
            _ => fs::read_to_string(path)
                .map_err(|error| failed(format!("failed to read the catalogue: {error}")))?,
        };
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Problem> {
        let file: File = toml::from_str(text).map_err(|error| {
            let place = Place::at(path, text, error.span().map_or(0, |span| span.start));
            Problem::new(Kind::Syntax, "", error.message().trim().replace('\n', ", ")).at(place)
        })?;
        let mut entries: Vec<Entry> = Vec::new();
        for row in file.driver {
            let place = Place::at(path, text, row.version.span().start);
            let entry = entry(row, path).map_err(|(what, fix)| {
                Problem::new(Kind::BadValue, "driver", what).at(place.clone()).fix(fix)
            })?;
            if entries.iter().any(|other| other.name == entry.name) {
                let what = format!("there are two packages '{}'", entry.name);
                let problem = Problem::new(Kind::Conflict, "driver", what).at(place);
                return Err(problem.fix("give one of them a name = \"…\" of its own"));
            }
            entries.push(entry);
        }
        Ok(Self { path: path.to_owned(), entries })
    }

    /// A package by its name, or by its version if only one has it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let by_name = self.entries.iter().find(|entry| entry.name == name);
        by_name.or_else(|| {
            let version: Version = name.parse().ok()?;
            let mut all = self.entries.iter().filter(|entry| entry.version == version);
            all.next().filter(|_| all.next().is_none())
        })
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Adds a package that was read, or brings its entry up to date; returns its name.
    ///
    /// # Errors
    /// A sentence: a package without a version of NVIDIA's, a name that is taken by another one.
    pub fn add(
        &mut self,
        package: &Package,
        name: Option<&str>,
        from: Origin,
        sha256: String,
    ) -> Result<String, String> {
        let version = package
            .version
            .ok_or("the package has no version of NVIDIA's; only NVIDIA's packages can be listed")?;
        let name = name.map_or_else(|| version.to_string(), str::to_owned);
        let written = match &from {
            Origin::Url(url) => url.clone(),
            Origin::Path(path) => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                path.strip_prefix(folder).unwrap_or(path).display().to_string()
            }
        };
        let entry = Entry { name: name.clone(), version, from, written, sha256 };
        match self.entries.iter_mut().find(|other| other.name == name) {
            Some(other) if other.sha256 != entry.sha256 => {
                let fix = "give it a name of its own with --name";
                return Err(format!("'{name}' is another package already ({}): {fix}", other.written));
            }
            Some(other) => *other = entry,
            None => self.entries.push(entry),
        }
        Ok(name)
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let rows = self.entries.iter().map(|entry| {
            let version = entry.version.to_string();
            Row {
                name: (entry.name != version).then(|| entry.name.clone()),
                version: toml::Spanned::new(0..0, version),
                path: matches!(entry.from, Origin::Path(_)).then(|| entry.written.clone()),
                url: matches!(entry.from, Origin::Url(_)).then(|| entry.written.clone()),
                sha256: entry.sha256.clone(),
            }
        });
        let body = toml::to_string(&File { driver: rows.collect() }).unwrap_or_default();
        format!("{HEAD}\n{body}")
    }

    /// Writes it; an interrupted write leaves the old one.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self) -> std::io::Result<()> {
        let folder = self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        crate::lock::write_atomically(folder, &self.path, self.to_text().as_bytes())
    }
}

fn entry(row: Row, path: &Path) -> Result<Entry, (String, String)> {
    let version: Version = row
        .version
        .get_ref()
        .parse()
        .map_err(|error: super::NoVersion| (error.to_string(), "write it as 466.11".to_owned()))?;
    let sha256 = row.sha256.to_ascii_lowercase();
    if !is_sha256_hex(&sha256) {
        let what = format!("'{sha256}' is no SHA-256");
        return Err((what, "run no43 driver add FILE, which writes it".to_owned()));
    }
    let (from, written) = match (row.path, row.url) {
        (Some(written), None) => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let file = match (written.strip_prefix("~/"), std::env::var_os("HOME")) {
                (Some(rest), Some(home)) => Path::new(&home).join(rest),
                _ => folder.join(&written),
            };
            (Origin::Path(file), written)
        }
        (None, Some(url)) => (Origin::Url(url.clone()), url),
        _ => {
            let what = format!("{version} does not say where it is");
            return Err((what, "write path = \"…\" or url = \"…\", one of them".to_owned()));
        }
    };
    let name = row.name.unwrap_or_else(|| version.to_string());
    Ok(Entry { name, version, from, written, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUM: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn parse(text: &str) -> Result<Catalogue, String> {
        Catalogue::parse(&text.replace("SUM", SUM), Path::new("/r/drivers.toml"))
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn packages_are_found_by_name_or_version() {
        let text = "[[driver]]\nversion = '466.11'\npath = 'a.exe'\nsha256 = 'SUM'\n[[driver]]\nname = 'old'\nversion = '461.72'\nurl = 'https://x/b.exe'\nsha256 = 'SUM'\n";
        let all = parse(text).unwrap();
        assert_eq!(all.find("466.11").unwrap().from, Origin::Path("/r/a.exe".into()));
        assert_eq!(all.find("461.72"), all.find("old"));
        assert_eq!(all.find("1.2"), None);
        let again = Catalogue::parse(&all.to_text(), &all.path).unwrap();
        assert_eq!(again, all, "{}", all.to_text());
    }

    #[test]
    fn what_is_wrong_with_it_is_said_with_its_line() {
        let row = "[[driver]]\nversion = '466.11'\npath = 'a.exe'\nsha256 = 'SUM'\n";
        let error = |text: &str| parse(text).unwrap_err();
        insta::assert_snapshot!(error(&row.replace("466.11", "new")), @r"
        /r/drivers.toml:2:11: driver: 'new' is no driver version; they look like 466.11 or 535.216.03
            fix   write it as 466.11
        ");
        assert!(error(&row.replace("SUM", "1")).contains("'1' is no SHA-256"));
        assert!(error(&row.replace("path", "url = 'http://x'\npath")).contains("does not say where it is"));
        assert!(error(&format!("{row}{row}")).contains("two packages '466.11'"));
        assert!(error("[[drivers]]").contains("unknown field"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_catalogue_or_a_problem(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
