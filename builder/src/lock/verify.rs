//! What a build does first: every input still is what was locked.

use std::path::{Path, PathBuf};

use super::hashes::HashCache;
use super::{InputLock, Lock};
use crate::diagnostic::{Kind, Problem, Problems};
use crate::recipe::{Input, InputFrom, Resolved};

/// An input that is what was locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The input's name.
    pub name: String,
    /// The sum was remembered; the file was not read.
    pub cached: bool,
}

impl Lock {
    /// Checks every input of `recipe` against the lock; `inputs` is the store's folder of fetched files.
    ///
    /// # Errors
    /// Inputs that are not locked, not there, or not what was locked: all of them.
    pub fn verify(
        &self,
        recipe: &Resolved,
        inputs: &Path,
        hashes: &mut HashCache,
    ) -> Result<Vec<Verified>, Problems> {
        let mut problems = Problems::default();
        let mut verified = Vec::new();
        for (name, input) in &recipe.recipe.inputs {
            match self.verify_one(&recipe.recipe.name, name, input, inputs, hashes) {
                Ok(cached) => verified.push(Verified { name: name.clone(), cached }),
                Err(problem) => problems.push(problem),
            }
        }
        problems.sort();
        problems.into_result().map(|()| verified)
    }

    fn verify_one(
        &self,
        recipe: &str,
        name: &str,
        input: &Input,
        inputs: &Path,
        hashes: &mut HashCache,
    ) -> Result<bool, Problem> {
        let locked = self.input(recipe, name, input)?;
        let path = input_path(input, locked, inputs);
        let sum = hashes.sum(&path).map_err(|error| missing(name, input, &path, &error))?;
        if sum.sha256 == locked.sha256 {
            return Ok(sum.cached);
        }
        let what = format!("{} is not the file that was locked", path.display());
        let why = format!(
            "expected sha256 {} ({} bytes), found {} ({} bytes)",
            locked.sha256, locked.size, sum.sha256, sum.size
        );
        let fix = format!("put the old file back, or take the new one: no43 lock --update {name}");
        Err(input.spot.problem(Kind::WrongHash, what).why(why).fix(fix))
    }

    /// The lock's entry of an input, if it is there and of the same source.
    pub(crate) fn input(&self, recipe: &str, name: &str, input: &Input) -> Result<&InputLock, Problem> {
        let locked = self.inputs.get(recipe).and_then(|inputs| inputs.get(name));
        let problem = |what: String| input.spot.problem(Kind::NotLocked, what).fix("run no43 lock");
        let locked = locked.ok_or_else(|| problem(format!("not in {}", self.path.display())))?;
        if locked.source != input.written {
            return Err(problem(format!("{} pins {} instead", self.path.display(), locked.source)));
        }
        Ok(locked)
    }
}

/// Where an input's file is: its own path, or in the store's `inputs` folder.
#[must_use]
pub fn input_path(input: &Input, locked: &InputLock, inputs: &Path) -> PathBuf {
    match &input.from {
        InputFrom::Path(path) => path.clone(),
        InputFrom::Url(_) => inputs.join(&locked.sha256),
    }
}

pub(super) fn missing(name: &str, input: &Input, path: &Path, error: &std::io::Error) -> Problem {
    let gone = error.kind() == std::io::ErrorKind::NotFound;
    let what = if gone {
        format!("there is no file {}", path.display())
    } else {
        format!("failed to read {}: {error}", path.display())
    };
    let fix = match (&input.from, gone) {
        (InputFrom::Url(_), true) => format!("fetch it again: no43 lock --update {name}"),
        (_, true) => "put the file there, or write where it is".to_owned(),
        (_, false) => "it must be a file that you can read".to_owned(),
    };
    input.spot.problem(Kind::File, what).fix(fix)
}
