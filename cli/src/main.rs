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
use clap::Parser;
use context::Context;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
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
