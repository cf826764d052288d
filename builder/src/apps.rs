//! Remote play and access for Windows guests: what a recipe's switches install, as one table, and the actions made from it.
//!
//! Each is off unless named, comes from an input (so the lock pins it), is installed silently, and its service is asserted
//! afterwards. The order of the table is the order of installation: what changes policies first, virtual displays last.

use no43_guest::setup::{
    Action, Codes, PARSEC_ARGUMENTS, PARSEC_INSTALLER, PARSEC_SERVICE, RegistryValue, ServiceStart,
    ServiceState, Task,
};

/// One switch of `[remote]`.
#[derive(Debug)]
pub struct App {
    /// As recipes call it, and the input with its installer.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The installer's name on the set-up disk; `None` where Windows has the thing itself.
    pub file: Option<&'static str>,
    /// What makes it silent; of a Windows Installer package its properties.
    pub arguments: &'static [&'static str],
    /// Exit codes beside 0, 3010 and 1641 that mean done.
    pub done: &'static [i64],
    /// Services that must be there afterwards, whether they must run already, and with which start.
    pub services: &'static [Service],
    /// What `verify` asks the guest, in a case of the app's name: program and arguments, which must end with 0.
    pub asked: &'static [&'static str],
    /// What the answer must have in it.
    pub says: Option<&'static str>,
    /// Where its publisher offers it.
    pub from: &'static str,
    /// What a person has to do afterwards, if anything.
    pub by_hand: Option<&'static str>,
    /// That is to sign in: until then `verify` leaves its check out, with [`App::by_hand`] as the reason.
    pub wants_sign_in: bool,
    /// Who says so.
    pub source: &'static str,
}

/// A service that an installer leaves.
#[derive(Debug)]
pub struct Service {
    /// Its name for the service manager.
    pub name: &'static str,
    /// It runs without a card and without anybody signed in.
    pub running: bool,
}

const RUNS: bool = true;

/// All of them, in the order of installation. None was run on a real Windows by this project.
pub static APPS: &[App] = &[
    App {
        name: "rdp",
        title: "Remote Desktop",
        file: None,
        arguments: &[],
        done: &[],
        services: &[Service { name: "TermService", running: RUNS }],
        // the value that the answer file's setting becomes; a policy of somebody else's may have changed it
        asked: &[
            "reg.exe",
            "query",
            r"HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server",
            "/v",
            "fDenyTSConnections",
        ],
        says: Some("0x0"),
        from: "",
        by_hand: None,
        wants_sign_in: false,
        source: "Microsoft, \"Allow access to your PC\"; switched on by the answer file",
    },
    App {
        name: "sunshine",
        title: "Sunshine",
        file: Some("sunshine.msi"),
        arguments: &[],
        done: &[],
        services: &[Service { name: "SunshineService", running: false }],
        asked: &["sc.exe", "query", "SunshineService"],
        says: None,
        from: "https://github.com/LizardByte/Sunshine/releases",
        by_hand: Some("give it a user name and a password once at https://localhost:47990 in the guest"),
        wants_sign_in: false,
        source: "LizardByte/Sunshine, packaging/windows (MSI, /qn); the service's name as scripts of others use it",
    },
    App {
        name: "parsec",
        title: "Parsec",
        file: Some("parsec-windows.exe"),
        // its virtual display is for a card without a monitor
        arguments: PARSEC_ARGUMENTS,
        done: &[],
        services: &[Service { name: PARSEC_SERVICE, running: RUNS }],
        asked: &["sc.exe", "query", PARSEC_SERVICE],
        says: None,
        from: "https://builds.parsec.app/package/parsec-windows.exe",
        by_hand: Some("installed, not signed in: do it once with no43 view"),
        wants_sign_in: true,
        source: "Parsec's support pages, \"Silent install\"; the service's name is not verified",
    },
    App {
        name: "looking-glass",
        title: "Looking Glass",
        file: Some("looking-glass-idd-setup.exe"),
        arguments: &["/S", "/ivshmem"],
        done: &[],
        services: &[Service { name: "LGIddHelper", running: false }],
        asked: &["sc.exe", "query", "LGIddHelper"],
        says: None,
        from: "https://looking-glass.io/downloads",
        by_hand: None,
        wants_sign_in: false,
        source: "Looking Glass, doc/install_idd.rst; the service as its installer (idd/installer.nsi) asks for it, that it starts by \
                 itself as users tell",
    },
];

/// A pair that disturbs each other, and what a person should know.
#[derive(Debug)]
pub struct Conflict {
    /// Both.
    pub names: [&'static str; 2],
    /// A sentence.
    pub note: &'static str,
}

/// They may all be there together; a person is told what to expect.
pub static CONFLICTS: &[Conflict] = &[
    Conflict {
        names: ["rdp", "parsec"],
        note: "a session of Remote Desktop takes the screen away from Parsec until somebody logs on at the console again: \
               use one at a time",
    },
    Conflict {
        names: ["rdp", "sunshine"],
        note: "a session of Remote Desktop takes the screen away from Sunshine until somebody logs on at the console again: \
               use one at a time",
    },
    Conflict {
        names: ["parsec", "looking-glass"],
        note: "Parsec and Looking Glass each bring a virtual display: the desktop may be on the other one",
    },
];

/// Sessions of Remote Desktop use the card (Microsoft, "Configure GPU acceleration for Azure Virtual Desktop"; Pro and
/// Enterprise editions). Key, value, data.
pub static RDP_GPU: &[(&str, &str, u32)] = &[
    (r"HKLM\SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "bEnumerateHWBeforeSW", 1),
    (r"HKLM\SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "AVC444ModePreferred", 1),
    (r"HKLM\SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services", "AVCHardwareEncodePreferred", 1),
];

/// The app of a switch.
#[must_use]
pub fn named(name: &str) -> Option<&'static App> {
    APPS.iter().find(|app| app.name == name)
}

/// What a person is told about apps that disturb each other, and about what is left to do by hand; `team`: Parsec has one.
pub fn notes<'a>(names: &'a [&'static str], team: bool) -> impl Iterator<Item = String> + 'a {
    let both = |conflict: &&Conflict| conflict.names.iter().all(|name| names.contains(name));
    let by_hand = names.iter().filter_map(|name| named(name));
    let by_hand = by_hand.filter_map(move |app| match app.wants_sign_in && team {
        true => Some(PARSEC_TEAM.to_owned()),
        false => Some(format!("{}: {}", app.title, app.by_hand?)),
    });
    CONFLICTS.iter().filter(both).map(|conflict| conflict.note.to_owned()).chain(by_hand)
}

/// What a person is told of Parsec for a team, instead of that somebody has to sign in.
pub const PARSEC_TEAM: &str = "Parsec: installed at an instance's first start, where it registers with its team; needs that guest's network";

/// Why a check is left out in an image: only an instance has what it asks for.
pub const AT_FIRST_START: &str =
    "an instance gets it at its first start: no43 verify --running NAME asks one";

/// Installers take minutes on a slow disk.
const LIMIT_SECONDS: u64 = 1200;

impl App {
    /// What the guest program does for it; `folder` is where its installer lies below the plan's folder.
    #[must_use]
    pub fn actions(&self, folder: &str) -> Vec<Action> {
        let mut actions: Vec<Action> = self.install(folder).into_iter().collect();
        let asserts = self.services.iter().map(|service| {
            let state = service.running.then_some(ServiceState::Running);
            let task =
                Task::Service { name: service.name.to_owned(), start: Some(ServiceStart::Auto), state };
            Action::new(format!("{}: service {}", self.title, service.name), task)
        });
        actions.extend(asserts);
        actions
    }

    /// Its installer goes into the image instead, for an instance's first start.
    #[must_use]
    pub fn kept(&self, folder: &str) -> Option<Action> {
        let from = format!("{folder}/{}", self.file?);
        let task = Task::Copy { from, to: PARSEC_INSTALLER.to_owned() };
        Some(Action {
            limit_seconds: LIMIT_SECONDS,
            ..Action::new(format!("{}: its installer", self.title), task)
        })
    }

    fn install(&self, folder: &str) -> Option<Action> {
        let file = format!("{folder}/{}", self.file?);
        let words = || self.arguments.iter().map(|word| (*word).to_owned()).collect();
        let task = if file.ends_with(".msi") {
            Task::Msi { package: file, properties: words() }
        } else {
            let done = std::iter::once(0).chain(self.done.iter().copied()).collect();
            Task::Exe { program: file, arguments: words(), codes: Codes { done, ..Codes::default() } }
        };
        Some(Action { limit_seconds: LIMIT_SECONDS, ..Action::new(self.title, task) })
    }
}

/// The policies of Remote Desktop for the card.
pub fn rdp_gpu() -> impl Iterator<Item = Action> {
    RDP_GPU.iter().map(|(key, name, data)| {
        let value = RegistryValue::Dword(*data);
        let task = Task::Registry { key: (*key).to_owned(), name: (*name).to_owned(), value };
        Action::new(format!("Remote Desktop: {name}"), task)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use no43_guest::setup::SetupPlan;

    #[test]
    fn every_app_becomes_actions_that_the_guest_program_takes() {
        for app in APPS {
            let actions = app.actions("apps");
            assert!(!actions.is_empty() && !app.source.is_empty(), "{}", app.name);
            SetupPlan::new("x", actions).check().unwrap();
        }
        SetupPlan::new("x", rdp_gpu().collect()).check().unwrap();
        let parsec = serde_json::to_string(&named("parsec").unwrap().actions("apps")).unwrap();
        assert!(parsec.contains(r#""/silent","/percomputer","/norun","/vdd""#), "{parsec}");
    }

    #[test]
    fn what_disturbs_each_other_and_what_is_left_to_do_is_said() {
        let said: Vec<String> = notes(&["rdp", "parsec"], false).collect();
        assert!(said[0].contains("one at a time") && said[1].starts_with("Parsec: installed, not signed in"));
        assert_eq!(notes(&["rdp"], false).count(), 0);
        assert_eq!(notes(&["parsec"], true).collect::<Vec<_>>(), [PARSEC_TEAM]);
        let known = |name: &&str| named(name).is_some();
        assert!(CONFLICTS.iter().all(|conflict| conflict.names.iter().all(known)));
    }
}
