//! The rules of `[driver]` and `[remote]`: which inputs they take, and what cannot be asked for together.

use std::collections::BTreeMap;

use super::{At, Rules};
use crate::apps::{self, App};
use crate::diagnostic::{Kind, nearest};
use crate::driver::catalogue::{self, Catalogue};
use crate::plan::{Firmware, ParsecTeamPlan};
use crate::recipe::{DriverAsk, DriverInstall, DriverSpots, Input, InputFrom, MachineAsk, RemoteAsk, Spot};

impl Rules<'_> {
    pub(super) fn driver(
        &mut self,
        root: &At<'_>,
        machine: &MachineAsk,
        inputs: &mut BTreeMap<String, Input>,
    ) -> Option<DriverAsk> {
        let at = root.child("driver")?;
        let spot =
            |key: &str| Spot { place: at.spot(key).place.or_else(|| root.here().place), ..at.spot(key) };
        let packages = at.texts("packages");
        let spots = DriverSpots {
            package: spot(if packages.is_empty() { "package" } else { "packages" }),
            version: spot("version"),
            install: spot("install"),
            components: spot("components"),
            legacy: spot("legacy"),
            test_signed: spot("test-signed"),
        };
        let install = match at.text("install") {
            "with-card" => DriverInstall::WithCard,
            "none" => DriverInstall::None,
            _ => DriverInstall::Staged,
        };
        let package = match at.opt_text("package") {
            Some(name) => self.driver_package(name, &spots.package, inputs),
            None => None,
        };
        let version = at.opt_text("version").and_then(|text| match text.parse() {
            Ok(version) => Some(version),
            Err(error) => {
                let error: crate::driver::NoVersion = error;
                self.push(spots.version.problem(Kind::BadValue, error.to_string()));
                None
            }
        });
        let ask = DriverAsk {
            package,
            packages,
            version,
            install,
            components: at.texts("components"),
            legacy: at.bool("legacy"),
            test_signed: at.bool("test-signed"),
            others: Vec::new(),
            spots,
        };
        self.driver_conflicts(root, machine, &ask);
        let others = self.other_drivers(root, &ask, inputs);
        Some(DriverAsk { others, ..ask })
    }

    /// What cannot be asked for together.
    fn driver_conflicts(&mut self, root: &At<'_>, machine: &MachineAsk, ask: &DriverAsk) {
        let mut refuse = |spot: &Spot, what: &str, fix: &str| {
            self.problems.push(spot.problem(Kind::Conflict, what).fix(fix));
        };
        let spots = &ask.spots;
        if ask.test_signed && machine.firmware == Firmware::UefiSecure {
            let what = "Windows takes no test-signed driver while Secure Boot is on";
            refuse(&spots.test_signed, what, "set machine.firmware = \"uefi\", or remove this key");
        }
        if !ask.packages.is_empty() && (self.windows || ask.package.is_some()) {
            let (what, fix) = match self.windows {
                true => ("Windows has no packages of a distribution", "name NVIDIA's .exe as driver.package"),
                false => ("'package' and 'packages' cannot both be here", "keep one of them"),
            };
            refuse(&spots.package, what, fix);
        }
        let has_card = !root.items("card").is_empty();
        let nothing = ask.package.is_none() && ask.packages.is_empty();
        if ask.install == DriverInstall::WithCard && !nothing {
            if !self.windows {
                let what = "a driver for Linux is put into the image without a card";
                refuse(&spots.install, what, "remove this key");
            } else if !has_card {
                let what = "there is no card to install the driver with";
                refuse(&spots.install, what, "add a [[card]], or set install = \"staged\"");
            }
        }
        if !ask.components.is_empty() && (nothing || ask.install != DriverInstall::WithCard) {
            let what = "only NVIDIA's own installer knows components, and it is not run here";
            refuse(&spots.components, what, "set install = \"with-card\", or remove this key");
        }
        for (flag, spot) in [(ask.test_signed, &spots.test_signed)] {
            if flag && !self.windows {
                refuse(spot, "test signing is Windows' own", "remove this key");
            }
        }
    }

    /// The input of a package; a name or version of the catalogue becomes an input.
    pub(super) fn driver_package(
        &mut self,
        name: &str,
        spot: &Spot,
        inputs: &mut BTreeMap<String, Input>,
    ) -> Option<String> {
        if inputs.contains_key(name) {
            return Some(name.to_owned());
        }
        let file = spot.place.as_ref().map_or(self.file, |place| &place.file);
        let catalogue = match Catalogue::beside(file) {
            Ok(catalogue) => catalogue,
            Err(problem) => {
                self.push(problem);
                return None;
            }
        };
        if let Some(entry) = catalogue.find(name) {
            let from = match &entry.from {
                catalogue::Origin::Path(path) => InputFrom::Path(path.clone()),
                catalogue::Origin::Url(url) => InputFrom::Url(url.clone()),
            };
            let input = Input {
                from,
                written: entry.written.clone(),
                sha256: Some(entry.sha256.clone()),
                spot: spot.clone(),
            };
            inputs.insert(name.to_owned(), input);
            return Some(name.to_owned());
        }
        let known = inputs.keys().map(String::as_str).chain(catalogue.names());
        let fix = match nearest(name, known) {
            Some(near) => format!("did you mean '{near}'?"),
            // a version is no bare key
            None => format!("add \"{name}\" = {{ path = \"…\" }} to [inputs], or run no43 driver add FILE"),
        };
        let what = format!("there is no input '{name}', and {} lists none", catalogue::FILE_NAME);
        self.push(spot.problem(Kind::Missing, what).fix(fix));
        None
    }

    /// The switches of `[remote]`, each with the installer that it needs.
    pub(super) fn remote(&mut self, root: &At<'_>, inputs: &BTreeMap<String, Input>) -> RemoteAsk {
        let Some(at) = root.child("remote") else { return RemoteAsk::default() };
        let asked: Vec<&App> = apps::APPS.iter().filter(|app| at.bool(app.name)).collect();
        for app in &asked {
            if !self.windows || app.file.is_none() || inputs.contains_key(app.name) {
                continue;
            }
            let what = format!("{} needs its installer, and no input is called '{}'", app.title, app.name);
            let fix =
                format!("add {} = {{ url = \"{}\" }} to [inputs]; the lock pins it", app.name, app.from);
            self.push(at.spot(app.name).problem(Kind::Missing, what).fix(fix));
        }
        let named = |name: &str| asked.iter().any(|app| app.name == name);
        if at.bool("rdp-gpu") && !named("rdp") {
            let problem = at.spot("rdp-gpu").problem(Kind::Conflict, "Remote Desktop is off");
            self.push(problem.fix("set rdp = true, or remove this key"));
        }
        let parsec_team = at.child("parsec-team").and_then(|team| self.parsec_team(&at, &team));
        RemoteAsk {
            apps: asked.iter().map(|app| app.name).collect(),
            rdp_gpu: at.bool("rdp-gpu"),
            parsec_team,
        }
    }

    /// Both parts, and Parsec itself.
    fn parsec_team(&mut self, remote: &At<'_>, at: &At<'_>) -> Option<ParsecTeamPlan> {
        if !remote.bool("parsec") {
            let problem = remote.spot("parsec-team").problem(Kind::Conflict, "Parsec is off");
            self.push(problem.fix("set parsec = true, or remove this table"));
        }
        let missing = |key: &str, fix: &str| {
            at.here()
                .problem(Kind::Missing, format!("a team of Parsec's needs its {key}"))
                .fix(fix.to_owned())
        };
        let id = at.opt_text("id").map(str::to_owned);
        if id.is_none() {
            self.push(missing("id", "add id = \"…\", as the team's administrator sees it"));
        }
        let Some(key) = at.child("key") else {
            self.push(missing("key", "add key = { file = \"…\" }: a file with the team's computer key"));
            return None;
        };
        Some(ParsecTeamPlan { key: self.secret(&key)?, id: id? })
    }
}
