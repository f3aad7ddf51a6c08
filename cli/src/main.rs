//! The `beeline` command: the only part that prints.
//!
//! ```text
//! args (what was typed) ─▶ Context, resolve (what is meant) ─▶ commands/* ─▶ output/* ─▶ standard output
//!                                                                  │
//!                                                    engine ◀──────┴──────▶ inject
//! ```
//!
//! The engine and the injector do not know each other; `bridge` turns the plans of one into the requests of the other.
#![forbid(unsafe_code)]

mod args;
mod bridge;
mod commands;
mod context;
mod output;
mod resolve;
mod symbols;

use args::Cli;
use clap::{Parser, error::ErrorKind};
use context::Context;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) => return help_or_error(&asked),
    };
    let result = Context::new(&cli.global).and_then(|mut context| {
        let status = commands::run(&mut context, &cli.command)?;
        context.out.flush()?;
        Ok(status)
    });
    match result {
        Ok(status) => status,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints what clap has to say: help and version, which were asked for, or what is wrong with the command line.
fn help_or_error(asked: &clap::Error) -> ExitCode {
    let printed = asked.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            output::error(&anyhow::Error::new(error).context("cannot write the help to standard output"));
            ExitCode::FAILURE
        }
        _ if matches!(asked.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => ExitCode::SUCCESS,
        _ => ExitCode::from(2),
    }
}
