//! The rules of `[checks]` and `[[check]]`: what `no43 verify` proves.

use std::collections::{BTreeMap, BTreeSet};

use super::{At, Rules, host_path};
use crate::apps;
use crate::diagnostic::Kind;
use crate::plan::{ChecksPlan, OwnCheck, Session, WorkWish};
use crate::recipe::tree::{Node, Origin, Value};

impl Rules<'_> {
    pub(super) fn checks(&mut self, root: &At<'_>, at: &At<'_>) -> ChecksPlan {
        let has_card = !root.items("card").is_empty();
        let (mut own, mut skip) = (self.own_checks(root, has_card), skip(at));
        if self.windows {
            remote(root, &mut own, &mut skip);
        }
        let mut of_card = |key: &str| {
            let asked = at.bool(key);
            let written = at.node(key).is_some_and(|node| !matches!(node.origin, Origin::Default { .. }));
            if asked && !has_card && written {
                let problem = at.spot(key).problem(Kind::Conflict, "there is no card to check");
                self.problems.push(problem.fix("add a [[card]], or remove this key"));
            }
            asked && has_card
        };
        let [card, driver, connector, picture, quiet] =
            ["card", "driver", "connector", "picture", "quiet"].map(&mut of_card);
        ChecksPlan {
            card,
            driver,
            connector,
            picture,
            quiet,
            work: work(at).filter(|_| has_card),
            driver_version: root.child("driver").and_then(|driver| driver.owned("version")),
            skip,
            own,
            lifecycle: self.lifecycle(root),
            ready_limit: at.seconds("ready"),
        }
    }

    fn own_checks(&mut self, root: &At<'_>, has_card: bool) -> Vec<OwnCheck> {
        let guest = root.child("guest");
        let user = guest.as_ref().and_then(|guest| guest.child("user"));
        let mut names = BTreeSet::new();
        let mut all = Vec::new();
        for at in root.items("check") {
            let Some(check) = self.own_check(&at, has_card, user.as_ref()) else { continue };
            if !names.insert(check.name.clone()) {
                let what = format!("there are two checks '{}'", check.name);
                self.push(at.spot("name").problem(Kind::Conflict, what).fix("give each a name of its own"));
            }
            all.push(check);
        }
        all
    }

    fn own_check(&mut self, at: &At<'_>, has_card: bool, user: Option<&At<'_>>) -> Option<OwnCheck> {
        let Some(name) = at.owned("name") else {
            let problem = at.here().problem(Kind::Missing, "the check's name is missing");
            self.push(problem.fix("add name = \"…\": the report shows it"));
            return None;
        };
        let run = at.texts("run");
        if run.is_empty() {
            let problem = at.spot("run").problem(Kind::Missing, "it does not say what is run");
            self.push(problem.fix("add run = [\"program\", \"argument\"]"));
            return None;
        }
        let session = if at.text("session") == "user" { Session::User } else { Session::Service };
        let lacks = match user {
            None => Some(("this guest has no user", "guest.user")),
            Some(user) if self.windows && user.child("password").is_none() => {
                Some(("nobody can be logged on: the guest's user has no password", "guest.user.password"))
            }
            Some(_) => None,
        };
        if let (Session::User, Some((what, key))) = (session, lacks) {
            let problem = at.spot("session").problem(Kind::Conflict, what);
            self.push(problem.fix(format!("add {key}, or write session = \"service\"")));
        }
        let each_card = at.text("each") == "card";
        if each_card && !has_card {
            let problem = at.spot("each").problem(Kind::Conflict, "there is no card");
            self.push(problem.fix("add a [[card]], or remove this key"));
        }
        if let Some(path) = at.opt_text("metrics") {
            self.guest_path(at, "metrics", path);
        }
        let pictures = at.texts("pictures");
        pictures.iter().for_each(|path| self.guest_path(at, "pictures", path));
        Some(OwnCheck {
            name,
            copy: paths(at, "copy"),
            run,
            session,
            limit: at.seconds("limit"),
            exit: at.int("exit").map_or(0, i64::from),
            says: at.owned("says"),
            metrics: at.owned("metrics"),
            pictures,
            each_card,
        })
    }
}

/// One check for each switch of `[remote]` that can be asked for. For remote play to which a person has to sign in once it is never
/// a pass, because no image has anybody signed in: every report says what is left to do.
fn remote(root: &At<'_>, own: &mut Vec<OwnCheck>, skip: &mut BTreeMap<String, String>) {
    let Some(remote) = root.child("remote") else { return };
    for app in apps::APPS.iter().filter(|app| !app.asked.is_empty() && remote.bool(app.name)) {
        if own.iter().any(|check| check.name == app.name) {
            continue; // the recipe has a better one
        }
        if let (true, Some(by_hand)) = (app.wants_sign_in, app.by_hand) {
            let team = remote.child("parsec-team").is_some();
            let why = if team { apps::AT_FIRST_START } else { by_hand };
            skip.entry(app.name.to_owned()).or_insert_with(|| why.to_owned());
        }
        own.push(OwnCheck {
            name: app.name.to_owned(),
            copy: Vec::new(),
            run: app.asked.iter().map(|word| (*word).to_owned()).collect(),
            session: Session::Service,
            limit: SERVICE_LIMIT,
            exit: 0,
            says: app.says.map(str::to_owned),
            metrics: None,
            pictures: Vec::new(),
            each_card: false,
        });
    }
}

/// Seconds; service manager and registry answer at once.
const SERVICE_LIMIT: u64 = 60;

fn work(at: &At<'_>) -> Option<WorkWish> {
    match (at.node("work").is_some(), at.texts("work")) {
        (false, _) => Some(WorkWish::Usual),
        (true, kinds) if kinds.is_empty() => None,
        (true, kinds) => Some(WorkWish::Only(kinds)),
    }
}

/// By the checks' own names: a key cannot hold a blank, so that `no-code` is the check 'no code'.
fn skip(at: &At<'_>) -> BTreeMap<String, String> {
    let Some(skip) = at.child("skip") else { return BTreeMap::new() };
    let names = skip.table.0.iter().map(|entry| entry.key.clone());
    names.filter_map(|name| Some((name.replace('-', " "), skip.owned(&name)?))).collect()
}

/// Host paths; relative ones count from the file that says so.
fn paths(at: &At<'_>, key: &str) -> Vec<std::path::PathBuf> {
    let Some(Node { value: Value::List(items), .. }) = at.node(key) else { return Vec::new() };
    let path = |node: &Node| match &node.value {
        Value::Text(text) => Some(host_path(text, &node.origin)),
        _ => None,
    };
    items.iter().filter_map(path).collect()
}
