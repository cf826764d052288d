//! The inputs that a recipe names as drivers: read once, when they are locked.

use std::path::Path;

use crate::diagnostic::{Kind, Problem};
use crate::driver::{DriverFacts, Package, System};
use crate::recipe::{Input, Resolved};

/// What the package says of itself; `None` for an input that is no driver.
///
/// # Errors
/// What is no package, and a package for another system than the guest's.
pub(super) fn look_into(
    recipe: &Resolved,
    name: &str,
    input: &Input,
    path: &Path,
) -> Result<Option<DriverFacts>, Problem> {
    let guest = &recipe.recipe;
    let named = guest.driver.others.iter().map(|other| &other.name).chain(&guest.driver.package);
    if !named.into_iter().any(|package| package == name) {
        return Ok(None);
    }
    let package = Package::read(path).map_err(|error| {
        let text = error.to_string();
        let (what, fix) = text
            .split_once("\n    fix   ")
            .unwrap_or((&text, "name another file, or take driver.package out"));
        input.spot.problem(Kind::BadValue, what).fix(fix)
    })?;
    if let Some(name) = &package.debian {
        let what =
            format!("{} is Debian's package '{name}' alone, without those that it needs", path.display());
        let fix = "write driver.packages = [\"nvidia-driver\"] instead of driver.package";
        return Err(input.spot.problem(Kind::Conflict, what).fix(fix));
    }
    let (is, wanted) = match (package.system, guest.guest.windows.is_some()) {
        (System::Linux, true) => ("Linux", "NVIDIA's .exe for Windows"),
        (System::Windows, false) => ("Windows", "NVIDIA's .run for Linux, or driver.packages"),
        _ => return Ok(Some(DriverFacts::of(&package))),
    };
    let what = format!("{} is a driver for {is}, and the guest is {}", path.display(), guest.guest.os);
    Err(input.spot.problem(Kind::Conflict, what).fix(format!("name {wanted}")))
}

/// The same in words, to say what changed.
pub(super) fn said(facts: &DriverFacts) -> Vec<(String, String)> {
    let version = facts.version.map_or_else(|| "of another maker".to_owned(), |version| version.to_string());
    let mut said = vec![("driver".to_owned(), version)];
    if !facts.date.is_empty() {
        said.push(("driver date".to_owned(), facts.date.clone()));
    }
    said
}
