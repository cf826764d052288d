//! `no43 media`: what an installation medium holds.

use std::path::PathBuf;

use clap::Subcommand;
use no43_builder::media::{self, Channel, Media, SecureBoot};
use no43_harness::exit_codes;
use no43_harness::words::{bytes, clean};
use no43_machine::firmware::{self, Wanted};
use no43_machine::spec::{DEFAULT_MACHINE_TYPE, DiskFormat, FlashFile};
use serde::Serialize;

use crate::context::{Context, Done, OrExit as _};
use crate::text::Table;

/// The disc is read in place; nothing is mounted or unpacked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say which Windows an ISO holds, in which editions and languages, and which firmware boots it
    Inspect {
        /// The ISO as Microsoft ships it, or a drive with the disc
        iso: PathBuf,
        /// Compare with the Secure Boot keys in this store of UEFI variables, instead of this host's firmware
        #[arg(long, value_name = "FILE")]
        vars: Option<PathBuf>,
    },
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    title: String,
    os: Option<&'static str>,
    #[serde(flatten)]
    media: Media,
    secure_boot: Option<SecureBoot>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    secure_boot_unknown: Option<String>,
    bytes_read: u64,
}

pub(crate) fn run(args: Args, context: &Context) -> Done {
    let Command::Inspect { iso, vars } = args.command;
    let (media, bytes_read) = media::inspect_counted(&iso).or_exit(exit_codes::INPUT)?;
    let (secure_boot, secure_boot_unknown) = match secure_boot(&media, vars) {
        Ok(known) => (Some(known), None),
        Err(why) => (None, Some(why)),
    };
    let os = media.system().map(|system| system.os);
    let shown = Shown { title: media.title(), os, media, secure_boot, secure_boot_unknown, bytes_read };
    context.print(&shown, text)?;
    Ok(exit_codes::OK)
}

fn secure_boot(media: &Media, vars: Option<PathBuf>) -> Result<SecureBoot, String> {
    let vars = match vars {
        Some(path) => FlashFile { path, format: DiskFormat::Raw },
        None => {
            let found = firmware::find(Wanted::SecureBoot, DEFAULT_MACHINE_TYPE);
            found.map_err(|error| error.to_string())?.vars_template
        }
    };
    media.secure_boot(&vars).map_err(|error| error.to_string())
}

fn text(shown: &Shown) -> String {
    let media = &shown.media;
    let compressed = if media.esd { ", compressed as a whole (ESD)" } else { "" };
    let signers = match media.boot_signers.as_slice() {
        [] => "boot manager not signed".to_owned(),
        signers => format!("boot manager signed by {}", clean(&signers.join(" and "))),
    };
    let firmware = match (&shown.secure_boot, &shown.secure_boot_unknown) {
        (Some(check), _) => format!("{} {}", check.variables.display(), check.sentence),
        (None, why) => format!("not compared: {}", why.as_deref().unwrap_or_default()),
    };
    let mut text = format!("{}  {}  {}\n", shown.title, media.architecture, bytes(media.bytes));
    for (label, value) in [
        ("label", clean(&media.label)),
        ("sold as", channel(media)),
        ("installs", format!("{}{compressed}", media.install_file)),
        ("Setup", format!("speaks {}", clean(&media.setup_languages.join(", ")))),
        ("boot", signers),
        ("firmware", firmware),
    ] {
        text.push_str(&format!("  {label:<9} {value}\n"));
    }
    text + &images(media)
}

fn channel(media: &Media) -> String {
    match (media.channel, media.evaluation_days) {
        (Channel::Evaluation, Some(days)) => {
            format!("evaluation: ends {days} days after it was installed; takes no product key")
        }
        (Channel::Evaluation, None) => "evaluation; takes no product key".to_owned(),
        (Channel::Retail, _) => "retail: the edition's public install key chooses it".to_owned(),
        (Channel::Volume, _) => "volume: a KMS client key, or none".to_owned(),
        (Channel::Unknown, _) => "the medium does not say".to_owned(),
    }
}

fn images(media: &Media) -> String {
    let mut table = Table::new(&["IMAGE", "EDITION", "NAME", "LANGUAGES", "VERSION", "UNPACKED"]);
    for image in &media.images {
        let or_none = |text: &Option<String>| clean(text.as_deref().unwrap_or("-"));
        table.row([
            image.index.to_string(),
            or_none(&image.edition_id),
            clean(&image.name),
            clean(&image.languages.join(" ")),
            or_none(&image.version),
            image.bytes.map_or_else(|| "-".to_owned(), bytes),
        ]);
    }
    table.to_string()
}
