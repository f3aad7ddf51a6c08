//! Where a program is to go, as a user writes it: `PROG=uprobe:PATH:SYMBOL+OFFSET`.

use beeline_store::ProbeKind;
use std::fmt;
use std::str::FromStr;

/// A place for a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachSpec {
    /// The program's name.
    pub program: String,
    /// When it runs.
    pub kind: ProbeKind,
    /// The file: a path, or the name of a library or command to be searched for.
    pub path: String,
    /// The place in the file.
    pub place: Place,
}

/// A place in a file, as a user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Bytes behind a symbol.
    Symbol {
        /// Its name.
        name: String,
        /// Bytes.
        offset: u64,
    },
    /// Bytes behind the start of the file.
    FileOffset(u64),
}

/// Why a text is no place for a program.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?}: {reason}; write PROG=uprobe:PATH:SYMBOL[+OFFSET] or PROG=uretprobe:PATH:SYMBOL")]
pub struct AttachSpecError {
    text: String,
    reason: String,
}

impl FromStr for AttachSpec {
    type Err = AttachSpecError;

    fn from_str(text: &str) -> Result<AttachSpec, AttachSpecError> {
        let fail = |reason: &str| AttachSpecError { text: text.into(), reason: reason.into() };
        let (program, place) = text.split_once('=').ok_or_else(|| fail("there is no '='"))?;
        let (kind, target) = place.split_once(':').ok_or_else(|| fail("there is no ':'"))?;
        let kind = match kind {
            "uprobe" => ProbeKind::Entry,
            "uretprobe" => ProbeKind::Return,
            other => return Err(fail(&format!("attaching to a {other} is not supported"))),
        };
        // A symbol has no ':' unless it is a C++ one, a path could: the first ':' behind the last '/' divides.
        let file_starts = target.rfind('/').map_or(0, |slash| slash + 1);
        let colon =
            target[file_starts..].find(':').ok_or_else(|| fail("there is no symbol behind the path"))?;
        let (path, place) = (&target[..file_starts + colon], &target[file_starts + colon + 1..]);
        if program.is_empty() || path.is_empty() {
            return Err(fail("the program or the path is empty"));
        }
        let place = place.parse().map_err(|reason: String| fail(&reason))?;
        Ok(AttachSpec { program: program.into(), kind, path: path.into(), place })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(Place::FileOffset(number(text)?));
        }
        let (name, offset) = match text.rsplit_once('+') {
            Some((name, offset)) if offset.starts_with(|first: char| first.is_ascii_digit()) => {
                (name, number(offset)?)
            }
            _ => (text, 0),
        };
        if name.is_empty() {
            return Err("the symbol is empty".into());
        }
        Ok(Place::Symbol { name: name.into(), offset })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Symbol { name, offset: 0 } => f.write_str(name),
            Place::Symbol { name, offset } => write!(f, "{name}+{offset:#x}"),
            Place::FileOffset(offset) => write!(f, "{offset:#x}"),
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> (String, Place) {
        let spec: AttachSpec = format!("p=uprobe:{text}").parse().unwrap();
        (spec.path, spec.place)
    }

    fn symbol(name: &str, offset: u64) -> Place {
        Place::Symbol { name: name.into(), offset }
    }

    #[test]
    fn places() {
        assert_eq!(place("libc.so.6:malloc"), ("libc.so.6".into(), symbol("malloc", 0)));
        assert_eq!(place("/bin/x:main+0x10"), ("/bin/x".into(), symbol("main", 16)));
        assert_eq!(place("/bin/x:0x1139"), ("/bin/x".into(), Place::FileOffset(0x1139)));
        assert_eq!(place("./a:operator+"), ("./a".into(), symbol("operator+", 0)));
        assert_eq!(place("/opt/a:b/c:main.work"), ("/opt/a:b/c".into(), symbol("main.work", 0)));
        assert_eq!(place("./a:ns::f"), ("./a".into(), symbol("ns::f", 0)));
        let spec: AttachSpec = "f=uretprobe:a:b".parse().unwrap();
        assert_eq!((spec.program.as_str(), spec.kind), ("f", ProbeKind::Return));
    }

    #[test]
    fn what_is_no_place() {
        for text in [
            "",
            "p",
            "p=",
            "p=uprobe",
            "p=uprobe:",
            "p=uprobe:x",
            "p=uprobe:x:",
            "=uprobe:x:y",
            "p=kprobe:f",
            "p=uprobe::y",
            "p=uprobe:x:+1",
            "p=uprobe:x:0xzz",
            "p=uprobe:x:f+1z",
        ] {
            let error = text.parse::<AttachSpec>().expect_err(text).to_string();
            assert!(error.contains("uprobe:PATH"), "{error}");
        }
    }
}
