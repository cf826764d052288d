//! Whether a Linux guest's own settings forbid the drivers of a function: asked only after no driver came.

use super::Asking;
use crate::diagnosis::{Facts, is_windows};
use crate::words;
use std::time::Duration;

/// For one small program in the guest.
const LIMIT: Duration = Duration::from_secs(30);

/// Where modprobe's settings are, in the order in which it reads them.
const FOLDERS: &[&str] = &[
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];

/// The fact `guest.blacklist` for the function at this address of the guest; nothing where the guest could not be asked.
pub(super) fn look(asking: &mut Asking<'_, '_>, guest: &str) -> Facts {
    let mut facts = Facts::default();
    let Some(report) = asking.last.as_ref().filter(|report| !is_windows(report)) else { return facts };
    let Some(alias) = report.function(guest).and_then(|there| there.modalias.clone()) else { return facts };
    // every module that would take it, also a forbidden one
    let Some(modules) = run(asking, &["modprobe", "--resolve-alias", "--", &alias]) else { return facts };
    let grep = ["grep", "-rsE", "^[[:space:]]*(blacklist|install)[[:space:]]"];
    let Some(settings) = run(asking, &[&grep[..], FOLDERS].concat()) else { return facts };
    let options = asking.guest.fetch("/proc/cmdline", 64 << 10).unwrap_or_default();
    facts.all("guest.blacklist", forbidden(&modules, &settings, &String::from_utf8_lossy(&options)));
    facts
}

/// Output of a program that ran: 1 means that it found nothing, and grep's 2 that one of the folders is not there.
fn run(asking: &mut Asking<'_, '_>, argv: &[&str]) -> Option<String> {
    let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    let ran = asking.guest.run(&argv, LIMIT).ok()?;
    matches!(ran.code, Some(0..=2)).then_some(ran.output)
}

/// "nouveau (/etc/modprobe.d/no.conf)" for each module that one of the settings forbids; nothing while one is left that would take
/// the function, since a guest with NVIDIA's driver forbids nouveau.
fn forbidden(modules: &str, settings: &str, options: &str) -> Vec<String> {
    let all = modules.lines().map(plain).filter(|module| !module.is_empty() && !module.contains(' '));
    // plain frame buffers drive no card
    let drivers: Vec<String> = all.filter(|module| !module.ends_with("fb")).collect();
    let found: Vec<Option<String>> = drivers
        .iter()
        .map(|module| in_files(module, settings).or_else(|| of_kernel(module, options)))
        .collect();
    if found.iter().any(Option::is_none) { Vec::new() } else { found.into_iter().flatten().collect() }
}

/// A line of modprobe's settings, after the file's name that grep writes before it.
fn in_files(module: &str, settings: &str) -> Option<String> {
    let forbids = |line: &str| {
        let mut words = line.split_whitespace();
        let (kind, name, program) = (words.next(), words.next().map(plain), words.next());
        // `install nouveau /bin/false` is the other way to say it
        let never = program.is_some_and(|path| path.ends_with("bin/false") || path.ends_with("bin/true"));
        name.as_deref() == Some(module) && (kind == Some("blacklist") || (kind == Some("install") && never))
    };
    let mut lines = settings.lines().filter_map(|line| line.split_once(':'));
    let (file, _) = lines.find(|(_, line)| forbids(line))?;
    Some(format!("{module} ({})", words::clean_to(file, 120)))
}

fn of_kernel(module: &str, options: &str) -> Option<String> {
    let mut options = options.split_whitespace().filter_map(|word| word.split_once('='));
    let (key, _) = options.find(|(key, value)| {
        matches!(*key, "modprobe.blacklist" | "module_blacklist")
            && value.split(',').any(|name| plain(name) == module)
    })?;
    Some(format!("{module} ({key} on the kernel's command line)"))
}

/// modprobe takes `-` for `_`.
fn plain(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::forbidden;

    #[test]
    fn only_what_would_take_the_card_counts() {
        let files = "/etc/modprobe.d/no.conf:blacklist snd-hda-intel\n/etc/modprobe.d/no.conf:install bochs /bin/false\n/lib/modprobe.d/x.conf:blacklist evbug\n/etc/modprobe.d/y.conf:install nouveau /sbin/modprobe --ignore-install nouveau\n";
        let look = |modules: &str, options: &str| forbidden(modules, files, options).join("; ");
        assert_eq!(look("snd_hda_intel\n", ""), "snd_hda_intel (/etc/modprobe.d/no.conf)");
        assert_eq!(look("bochs\n", "quiet"), "bochs (/etc/modprobe.d/no.conf)");
        let kernel = "quiet modprobe.blacklist=foo,nouveau";
        assert_eq!(
            look("nouveau\nnvidiafb\n", kernel),
            "nouveau (modprobe.blacklist on the kernel's command line)"
        );
        assert_eq!(look("nouveau\n", ""), "");
        assert_eq!(look("nvidia\nnouveau\n", kernel), "", "NVIDIA's own driver is allowed");
        assert_eq!(look("modprobe: FATAL: Module not found\n", "module_blacklist=modprobe:"), "");
    }
}
