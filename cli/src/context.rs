//! What every command needs: the store's name, where to print and how.

use crate::args::{Color, Global};
use crate::output::Output;
use anyhow::Result;
use beeline_engine::{Engine, StoreName};

/// The resolved options of every command.
pub(crate) struct Context {
    /// Which store.
    pub(crate) store: StoreName,
    /// Print JSON.
    pub(crate) json: bool,
    /// How much to say on standard error.
    pub(crate) verbose: u8,
    /// Standard output.
    pub(crate) out: Output,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Context> {
        let choice = match global.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        if let Some(limit) = address_space_limit().filter(|&limit| limit < ADDRESS_SPACE_MIN) {
            let kib = limit / 1024;
            crate::output::warn(format_args!(
                "the address space is limited to {kib} kB (ulimit -v): beeline may end for want of memory"
            ));
        }
        Ok(Context {
            store: if global.store.is_empty() {
                StoreName::default()
            } else {
                StoreName::parse(&global.store)?
            },
            json: global.json,
            verbose: global.verbose,
            out: Output::stdout(),
        })
    }

    /// The engine on a store that is made when it does not exist.
    pub(crate) fn engine(&self) -> Result<Engine> {
        Ok(Engine::open_or_create(&self.store)?)
    }

    /// The engine on a store that may not exist: nothing was ever loaded then.
    pub(crate) fn existing(&self) -> Result<Option<Engine>> {
        Ok(Engine::open(&self.store)?)
    }

    /// Says what of the store could not be read. The rest is shown all the same.
    pub(crate) fn damaged(&self, errors: &[beeline_engine::StoreError]) {
        for error in errors {
            crate::output::warn(error);
        }
    }

    /// The error of commands that need something in the store.
    pub(crate) fn nothing_loaded(&self) -> anyhow::Error {
        let path = self.store_text();
        if self.is_absent() {
            return anyhow::anyhow!("there is no {path}; `beeline load FILE.bpf.o` makes it");
        }
        anyhow::anyhow!("nothing is loaded in {path}; `beeline load FILE.bpf.o` comes first")
    }

    fn store_text(&self) -> String {
        match &self.store {
            StoreName::Named(name) => format!("store {name:?}"),
            StoreName::Path(path) => format!("store {}", path.display()),
        }
    }

    /// The store is not the one that everybody has, and does not exist: its name may be mistyped.
    fn is_absent(&self) -> bool {
        self.store != StoreName::default() && matches!(self.existing(), Ok(None))
    }

    /// Says on standard error that a list is empty: what reads standard output sees an empty list.
    #[expect(clippy::unnecessary_wraps, reason = "ends the functions that list")]
    pub(crate) fn nothing_to_list(&self, what: &str) -> Result<()> {
        let why =
            if self.is_absent() { format!(": there is no {}", self.store_text()) } else { String::new() };
        crate::output::say(&format!("no {what}{why}"));
        Ok(())
    }
}

/// What the largest programs and libraries take while they are looked at, with room to spare.
const ADDRESS_SPACE_MIN: u64 = 1 << 30;

/// `RLIMIT_AS`, in bytes; none where there is no limit.
fn address_space_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}
