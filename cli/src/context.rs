//! What every subcommand shares: global flags, where the store is, how results are printed, and how errors become exit codes.

use std::fmt::Display;
use std::io::IsTerminal;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use no43_builder::store::Store;
use no43_harness::exit_codes;
use serde::Serialize;

/// Flags that every subcommand takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Print the result as JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour; `NO_COLOR` means never
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    pub(crate) color: Colour,
    /// Where images are kept [default: $NO43_STORE, else the user's cache folder]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Why a subcommand did not do its work: the exit code, and what a person reads.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A failure with one of the codes in [`exit_codes`].
    pub(crate) fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// What went wrong.
    pub(crate) fn into_message(self) -> String {
        self.message
    }
}

/// Gives an error its exit code: `store.verify().or_exit(STORE)?`.
pub(crate) trait OrExit<T> {
    /// Turns the error into a [`Failure`] with this code, its sources included.
    fn or_exit(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, with_sources(&error)))
    }
}

/// An error with those below it, each once: many of our messages already hold their source's text.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        let line = below.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        source = below.source();
    }
    text
}

/// What a subcommand ends with: an exit code, or a failure to print.
pub(crate) type Done = Result<u8, Failure>;

/// The global flags, resolved.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) json: bool,
    colour: Colour,
    store: Option<PathBuf>,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        Self { json: global.json, colour: global.color, store: global.store }
    }

    /// Is colour wanted on standard output?
    pub(crate) fn colour_stdout(&self) -> bool {
        let terminal = || std::io::stdout().is_terminal();
        match self.colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// The store: `--store`, `$NO43_STORE`, or the user's cache folder.
    pub(crate) fn store(&self) -> Result<Store, Failure> {
        Store::open(self.store.as_deref()).or_exit(exit_codes::STORE)
    }

    /// A result for people, or the same as JSON.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            let mut text = serde_json::to_string_pretty(value).map_err(|error| {
                Failure::new(exit_codes::FAILED_HARNESS, format!("failed to write JSON: {error}"))
            })?;
            text.push('\n');
            text
        } else {
            human(value)
        };
        print_text(&text)
    }

    /// Prints a failure, and turns the end of a subcommand into the process' exit code.
    pub(crate) fn finish(&self, done: Done) -> ExitCode {
        match done {
            Ok(code) => ExitCode::from(code),
            Err(failure) => {
                if !failure.message.is_empty() {
                    if self.json {
                        let value = serde_json::json!({"error": failure.message, "exit_code": failure.code});
                        // The last thing that this process says; there is nobody left to tell if it cannot be written.
                        let _ = print_text(&format!("{value}\n"));
                    }
                    eprintln!("{}", failure.message.trim_end());
                }
                ExitCode::from(failure.code)
            }
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is not an error.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            Err(Failure::new(exit_codes::FAILED_HARNESS, format!("failed to write the result: {error}")))
        }
    }
}

/// The table at the end of `no43 --help`.
pub(crate) fn exit_codes_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, name, meaning) in exit_codes::TABLE {
        text.push_str(&format!("  {code:>3}  {name:<16} {meaning}\n"));
    }
    text
}
