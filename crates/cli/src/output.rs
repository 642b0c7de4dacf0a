//! Where text goes: stdout for results, stderr for everything else, colour only where it is wanted.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    fn wanted(self, terminal: bool) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// Styles text, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    pub(crate) const OFF: Self = Self { on: false };
    #[cfg(test)]
    pub(crate) const ON: Self = Self { on: true };

    pub(crate) fn for_stdout(color: Color) -> Self {
        Self { on: color.wanted(io::stdout().is_terminal()) }
    }

    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    pub(crate) fn apply(self, style: Style, text: impl Display) -> String {
        let text = text.to_string();
        if self.on && !text.is_empty() { format!("{style}{text}{style:#}") } else { text }
    }
}

/// Standard error: errors, warnings, notes and progress. That it is closed stops nothing.
#[derive(Debug)]
pub(crate) struct Console {
    paint: Paint,
}

impl Console {
    pub(crate) fn new(color: Color) -> Self {
        Self { paint: Paint { on: color.wanted(io::stderr().is_terminal()) } }
    }

    pub(crate) fn error(&self, text: &str) {
        self.line(RED, "error", text);
    }

    pub(crate) fn warn(&self, text: &str) {
        self.line(YELLOW.bold(), "warning", text);
    }

    pub(crate) fn note(&self, text: &str) {
        self.line(BOLD, "note", text);
    }

    /// A line that belongs to the one before.
    pub(crate) fn detail(&self, label: &str, text: &str) {
        let text = visible(text);
        let _ = writeln!(io::stderr().lock(), "  {}: {text}", self.paint.apply(DIM, label));
    }

    fn line(&self, style: Style, label: &str, text: &str) {
        let text = visible(text);
        let _ = writeln!(io::stderr().lock(), "{}: {text}", self.paint.apply(style, label));
    }
}

/// A counter on stderr for long work, where stderr is a terminal and `shown`.
pub(crate) fn progress(shown: bool, template: &str) -> ProgressBar {
    if !shown || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Writes a result to stdout, and flushes it: written means that the reader can have it.
pub(crate) fn write_stdout(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

/// Writes a last result to stdout. That nobody reads it any more is no failure.
pub(crate) fn print(text: &str) -> Result<(), crate::failure::Failure> {
    match write_stdout(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(stdout_failed(&error)),
        _ => Ok(()),
    }
}

pub(crate) fn stdout_failed(error: &io::Error) -> crate::failure::Failure {
    crate::failure::Failure::new(crate::failure::Exit::Failed, format!("cannot write to stdout: {error}"))
}

/// Text of unknown origin for people: control characters, which could steer their terminal, are shown escaped. Line
/// breaks and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|c| if harmless(c) { c.to_string() } else { c.escape_default().to_string() })
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        assert_eq!(visible("a\tb\nc"), "a\tb\nc");
        assert_eq!(visible("\u{1b}[2Jx\r"), "\\u{1b}[2Jx\\r");
    }

    #[test]
    fn paints_only_when_on() {
        assert_eq!(Paint::OFF.apply(RED, "x"), "x");
        assert_eq!(Paint::ON.apply(RED, "x"), "\u{1b}[1m\u{1b}[31mx\u{1b}[0m");
    }
}
