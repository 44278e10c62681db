//! Progress bars and tables. Without a terminal no bar is drawn.

use std::io::IsTerminal as _;
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Redraw interval of a spinner.
const TICK: Duration = Duration::from_millis(120);

fn visible(quiet: bool) -> bool {
    !quiet && std::io::stderr().is_terminal()
}

/// A line that shows what is being done; hidden if `quiet` or without a terminal.
pub fn spinner(quiet: bool) -> ProgressBar {
    if !visible(quiet) {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(TICK);
    bar
}

/// A bar over `total` steps called `unit`, with rate and remaining time.
pub fn bar(total: u64, unit: &'static str, quiet: bool) -> ProgressBar {
    if !visible(quiet) {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(total);
    let template = format!("{{wide_bar}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A plain table with this header.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}
