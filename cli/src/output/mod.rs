//! Standard output and standard error: tables, JSON, messages.

pub(crate) mod dump;
pub(crate) mod hex;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod value;

use anstyle::{AnsiColor, Style};
use serde_json::Value;
use std::fmt;
use std::io::{self, BufWriter, Write};

/// Standard output, buffered. What cannot be written is an error, never a panic.
pub(crate) struct Output {
    stream: BufWriter<anstream::AutoStream<io::StdoutLock<'static>>>,
}

impl Output {
    pub(crate) fn stdout() -> Output {
        let stream = anstream::AutoStream::auto(io::stdout().lock());
        Output { stream: BufWriter::new(stream) }
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.stream, "{text}").map_err(unwritten)
    }

    /// Prints text as it is.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).map_err(unwritten)
    }

    /// Prints one JSON document on one line.
    pub(crate) fn json(&mut self, value: &Value) -> io::Result<()> {
        let written = serde_json::to_writer(&mut self.stream, value).map_err(io::Error::from);
        written.and_then(|()| writeln!(self.stream)).map_err(unwritten)
    }

    /// Lets the reader see what was printed until now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().map_err(unwritten)
    }
}

/// Says what could not be written.
fn unwritten(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

/// True when the reader of standard output went away: no failure of ours.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        io == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Prints an error with its causes. A cause that its parent quotes already is left out.
pub(crate) fn error(error: &anyhow::Error) {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let mut shown = error.to_string();
    let mut text = format!("{style}error{style:#}: {shown}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !shown.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
            shown = cause;
        }
    }
    say(&text);
    if let Some(advice) = advice(error) {
        say(&format!("  {advice}"));
    }
}

/// Prints a line on standard error. When nobody listens there, that is that.
pub(crate) fn say(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Prints a warning.
pub(crate) fn warn(text: impl fmt::Display) {
    let style = Style::new().bold().fg_color(Some(AnsiColor::Yellow.into()));
    say(&format!("{style}warning{style:#}: {text}"));
}

/// What to do about an error, where there is something to do.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    use beeline_engine::{EngineError, StoreError};
    let store_error = |cause: &'_ (dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(EngineError::Store(error)) => Some(advice_on_store(error)),
        _ => cause.downcast_ref::<StoreError>().map(advice_on_store),
    };
    let target_error = |cause: &'_ (dyn std::error::Error + 'static)| advice_on_target(cause.downcast_ref()?);
    error.chain().find_map(store_error).flatten().or_else(|| error.chain().find_map(target_error))
}

fn advice_on_target(error: &beeline_inject::TargetRefused) -> Option<&'static str> {
    use beeline_inject::TargetRefused;
    match error {
        TargetRefused::WrongArchitecture { .. } => {
            Some("A 32-bit program, or one for another machine, cannot carry probes.")
        }
        TargetRefused::ForeignAgent { .. } => Some("Detach it with the beeline that attached it."),
        TargetRefused::NotAttached { .. } => Some("`beeline ps` lists the processes that carry probes."),
        _ => None,
    }
}

fn advice_on_store(error: &beeline_engine::StoreError) -> Option<&'static str> {
    use beeline_engine::StoreError;
    match error {
        StoreError::ForeignOwner { .. } => {
            Some("Run as the user who owns it, or use another store (--store NAME).")
        }
        StoreError::WritableByOthers { .. } => {
            Some("If you trust what is in it: chmod go-w. Otherwise remove it and load again.")
        }
        StoreError::Exists { .. } => {
            Some("Give the new one another name (--name NAME), or unload the old one first.")
        }
        StoreError::Full { .. } => Some(
            "Unload objects, make maps smaller (max_entries), or enlarge it: mount -o remount,size=… on the tmpfs.",
        ),
        StoreError::Corrupt { .. } => Some("`beeline unload` removes a damaged object; then load it again."),
        StoreError::Version { .. } | StoreError::CpuCount { .. } => {
            Some("Detach what is attached to it with the beeline that made it, remove it, and load again.")
        }
        StoreError::NotTmpfs { .. } => Some("Use a name (it lies in /dev/shm) or a directory on a tmpfs."),
        StoreError::Busy { .. } => Some("See who holds the file (fuser, lsof), and try again."),
        _ => None,
    }
}
