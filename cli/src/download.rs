//! How far a download is: a bar on a terminal, else a line for each tenth.

use std::cell::RefCell;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};
use no43_builder::lock::Progress;
use no43_harness::words::bytes;

/// For [`no43_builder::lock::Tools::with_progress`].
pub(crate) fn meter() -> impl Fn(Progress<'_>) {
    let terminal = std::io::stderr().is_terminal();
    let meter = RefCell::new(Meter::default());
    move |progress| meter.borrow_mut().show(progress, terminal)
}

#[derive(Default)]
struct Meter {
    file: String,
    bar: Option<ProgressBar>,
    /// Of ten.
    said: u64,
}

impl Meter {
    fn show(&mut self, progress: Progress<'_>, terminal: bool) {
        if self.file != progress.file {
            *self = Self { file: progress.file.to_owned(), ..Self::default() };
        }
        if terminal {
            let bar = self.bar.get_or_insert_with(|| bar(&progress));
            bar.set_position(progress.done);
            if progress.total == Some(progress.done) {
                bar.finish_and_clear();
            }
            return;
        }
        let Some(total) = progress.total.filter(|total| *total > 0) else { return };
        let tenth = progress.done.saturating_mul(10) / total;
        if tenth > self.said {
            self.said = tenth;
            eprintln!("  fetch    {}: {} of {}", self.file, bytes(progress.done), bytes(total));
        }
    }
}

fn bar(progress: &Progress<'_>) -> ProgressBar {
    const KNOWN: &str = "  fetch    {msg}  {bar:24} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
    const UNKNOWN: &str = "  fetch    {msg}  {bytes}  {bytes_per_sec}";
    let (bar, template) = match progress.total {
        Some(total) => (ProgressBar::new(total), KNOWN),
        None => (ProgressBar::no_length(), UNKNOWN),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(progress.file.to_owned())
}
