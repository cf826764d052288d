//! Where somebody's own answer file says something else than the recipe that it is used with.

use std::path::Path;

use super::finding::{At, Finding, Severity, shown};
use super::lint::{Component, File, file_of, truth};
use super::settings::{Image, Settings};
use crate::diagnostic::{Kind, Place, Problem};
use crate::media::Media;

/// Every contradiction between the file and what the recipe comes to. What is wrong with the file itself is
/// [`lint_bytes`](super::lint_bytes)'s business.
#[must_use]
pub fn conflicts(bytes: &[u8], settings: &Settings) -> Vec<Finding> {
    let text = super::read::decode(bytes).text;
    let (document, _) = super::read::read(&text, None);
    let Some(root) = document.root() else { return Vec::new() };
    let Some(file) = file_of(root) else { return Vec::new() };
    let mut against = Against { settings, findings: Vec::new() };
    against.languages(&file);
    against.target(&file);
    against.user(&file);
    against.start(&file, root.at());
    against.findings
}

/// What keeps somebody's own file from being used: each error in it, and each contradiction, at its line.
pub(crate) fn own_file(path: &Path, bytes: &[u8], settings: &Settings, media: &Media) -> Vec<Problem> {
    let findings = super::lint_bytes(bytes, Some(media)).into_iter().chain(conflicts(bytes, settings));
    let problem = |finding: Finding| {
        let place = Place { file: path.to_owned(), line: finding.line, column: finding.column };
        let problem = Problem::new(Kind::Conflict, "guest.answer-file", finding.what).at(place);
        match finding.fix {
            Some(fix) => problem.fix(fix),
            None => problem,
        }
    };
    findings.filter(|finding| finding.severity == Severity::Error).map(problem).collect()
}

struct Against<'s> {
    settings: &'s Settings,
    findings: Vec<Finding>,
}

impl Against<'_> {
    fn differs(&mut self, at: At, key: &str, file: &str, recipe: &str) {
        let what = format!("the file says '{}', and the recipe's {key} is '{recipe}'", shown(file));
        let fix = format!("change the file or {key}, so that both say the same");
        self.findings.push(Finding::error(at, "recipe-conflict", what).fix(fix));
    }

    /// A setting of each of these components must be what the recipe says, where it is there at all.
    fn same<'d>(
        &mut self,
        components: impl Iterator<Item = Component<'d>>,
        path: &str,
        key: &str,
        recipe: &str,
    ) {
        for element in components.filter_map(|component| component.element.path(path)) {
            if !element.text().is_empty() && !element.text().eq_ignore_ascii_case(recipe) {
                self.differs(element.at(), key, element.text(), recipe);
            }
        }
    }

    fn languages(&mut self, file: &File<'_>) {
        let settings = self.settings;
        for component in ["International-Core-WinPE", "International-Core"] {
            self.same(file.of(component), "UILanguage", "guest.language", &settings.language);
            self.same(file.of(component), "UserLocale", "guest.locale", &settings.locale);
        }
        self.same(file.of("Shell-Setup"), "TimeZone", "guest.timezone", &settings.timezone);
        for component in file.of("TerminalServices-LocalSessionManager") {
            let denied = component.element.child("fDenyTSConnections");
            if let Some(denied) = denied.filter(|denied| truth(denied.text()) == Some(settings.rdp)) {
                self.differs(denied.at(), "remote.rdp", denied.text(), &settings.rdp.to_string());
            }
        }
    }

    fn target(&mut self, file: &File<'_>) {
        let settings = self.settings;
        let disk = settings.target_disk.to_string();
        let setup = || file.of_pass("windowsPE", "Setup");
        let install = "ImageInstall/OSImage";
        self.same(setup(), &format!("{install}/InstallTo/DiskID"), "machine.disk-bus (target disk)", &disk);
        let from = setup().filter_map(|setup| setup.element.path(install)?.child("InstallFrom"));
        for data in from.flat_map(|from| from.all("MetaData").collect::<Vec<_>>()) {
            let wanted = match (&settings.image, data.text_at("Key").map(str::to_ascii_uppercase).as_deref())
            {
                (Image::Index(index), Some("/IMAGE/INDEX")) => index.to_string(),
                (Image::Name(name), Some("/IMAGE/NAME")) => name.clone(),
                _ => continue,
            };
            let value = data.text_at("Value").unwrap_or_default();
            if !value.eq_ignore_ascii_case(&wanted) {
                self.differs(data.at(), "guest.edition (image)", value, &wanted);
            }
        }
        for component in file.components.iter().filter(|component| component.pass == "windowsPE") {
            let arch = component.element.attribute("processorArchitecture").unwrap_or_default();
            if !arch.eq_ignore_ascii_case(settings.arch.name()) {
                self.differs(component.element.at(), "machine", arch, settings.arch.name());
            }
        }
    }

    fn user(&mut self, file: &File<'_>) {
        let user = &self.settings.user;
        let shells = || file.of_pass("oobeSystem", "Shell-Setup");
        let accounts = shells().filter_map(|shell| shell.element.path("UserAccounts/LocalAccounts"));
        let names: Vec<_> = accounts
            .flat_map(|list| list.all("LocalAccount").filter_map(|a| a.child("Name")).collect::<Vec<_>>())
            .collect();
        if let Some(first) = names.first()
            && !names.iter().any(|name| name.text().to_lowercase() == user.to_lowercase())
        {
            let (at, text) = (first.at(), first.text().to_owned());
            self.differs(at, "guest.user.name", &text, user);
        }
    }

    /// Without the guest program nothing of the recipe's is done, and nobody says when Windows is ready.
    fn start(&mut self, file: &File<'_>, root: At) {
        let lists = file
            .of_pass("oobeSystem", "Shell-Setup")
            .filter_map(|shell| shell.element.child("FirstLogonCommands"));
        let lists: Vec<_> = lists.collect();
        let starts = lists.iter().flat_map(|list| list.children()).any(|command| {
            command
                .text_at("CommandLine")
                .is_some_and(|line| line.to_ascii_lowercase().contains("no43-guest"))
        });
        if !starts {
            let at = lists.first().map_or(root, |list| list.at());
            let what = "nothing starts no43-guest at the first logon";
            self.findings.push(
                Finding::error(at, "recipe-start", what)
                    .why("it carries out the recipe's set-up and says when Windows is ready")
                    .fix(format!(
                        "add to FirstLogonCommands, as the last: {}",
                        no43_guest::setup::first_logon_command(super::FOLDER)
                    )),
            );
        }
    }
}
