//! From what a user names to a place in a file.

use crate::error::ResolveError;
use crate::symbols::{SymbolKind, plain_name};
use crate::{Binary, Symbol};

/// A place as a user names it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Location {
    /// `name+offset`; the name may carry a version: `memcpy@GLIBC_2.14`.
    Symbol {
        /// The symbol's name.
        name: String,
        /// Bytes from its start.
        offset: u64,
    },
    /// Bytes from the start of the file.
    FileOffset(u64),
}

/// The bytes of a function, by link-time address.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FunctionRange {
    /// A symbol that names it; empty when only unwind information shows the function.
    pub name: String,
    /// Its first byte.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Resolved {
    /// Bytes from the start of the file.
    pub file_offset: u64,
    /// Link-time address.
    pub vaddr: u64,
    /// The function around it, when one is known.
    pub function: Option<FunctionRange>,
    /// It is the first byte of that function.
    pub is_entry: bool,
}

/// Finds the place that `location` names.
///
/// # Errors
/// [`ResolveError`] when there is none, or more than one.
pub fn resolve(binary: &Binary, location: &Location) -> Result<Resolved, ResolveError> {
    let vaddr = match location {
        Location::Symbol { name, offset } => symbol_address(binary, name, *offset)?,
        Location::FileOffset(offset) => {
            binary.vaddr_of(*offset).ok_or(ResolveError::NotExecutable { offset: *offset })?
        }
    };
    let file_offset = binary.file_offset_of(vaddr).ok_or(ResolveError::NotExecutable { offset: vaddr })?;
    if !binary.is_executable(vaddr) {
        return Err(ResolveError::NotExecutable { offset: file_offset });
    }
    let mut function = binary.function_at(vaddr);
    // One of several names: the one that was asked for.
    if let (Some(function), Location::Symbol { name, offset }) = (&mut function, location)
        && vaddr.checked_sub(*offset) == Some(function.start)
    {
        plain_name(name).clone_into(&mut function.name);
    }
    let is_entry = function.as_ref().is_some_and(|f| f.start == vaddr);
    Ok(Resolved { file_offset, vaddr, function, is_entry })
}

fn symbol_address(binary: &Binary, name: &str, offset: u64) -> Result<u64, ResolveError> {
    let symbol = choose(binary, name)?;
    if symbol.kind == SymbolKind::Ifunc {
        return Err(ResolveError::Ifunc {
            name: name.to_owned(),
            implementations: binary.symbols().implementations_of(name),
        });
    }
    if offset != 0 && symbol.size != 0 && offset >= symbol.size {
        return Err(ResolveError::OutsideFunction { name: name.to_owned(), offset, size: symbol.size });
    }
    Ok(symbol.vaddr.wrapping_add(offset))
}

/// As libbpf chooses: a default version before others, a strong symbol before weak ones, and never a guess.
fn choose(binary: &Binary, name: &str) -> Result<Symbol, ResolveError> {
    let symbols = binary.symbols();
    let mut found = symbols.named(name);
    if found.is_empty() {
        if symbols.imports(name) {
            return Err(ResolveError::Imported { name: name.to_owned() });
        }
        return Err(ResolveError::NoSymbol {
            name: name.to_owned(),
            near: symbols.near(name),
            stripped: symbols.stripped(),
        });
    }
    for better in [|s: &Symbol| s.default_version, |s: &Symbol| !s.weak, |s: &Symbol| s.global] {
        if distinct(&found) > 1 && found.iter().any(better) {
            found.retain(better);
        }
    }
    if distinct(&found) > 1 {
        let mut at: Vec<u64> = found.iter().map(|s| s.vaddr).collect();
        at.sort_unstable();
        at.dedup();
        return Err(ResolveError::Ambiguous { name: name.to_owned(), at });
    }
    found.into_iter().max_by_key(|s| s.size).ok_or_else(|| ResolveError::NoSymbol {
        name: name.to_owned(),
        near: Vec::new(),
        stripped: symbols.stripped(),
    })
}

fn distinct(symbols: &[Symbol]) -> usize {
    let mut at: Vec<u64> = symbols.iter().map(|s| s.vaddr).collect();
    at.sort_unstable();
    at.dedup();
    at.len()
}
