//! Where a program is to go, as a user writes it: `PROG=uprobe:PATH:SYMBOL+OFFSET`.
//!
//! ```text
//! PROG=uprobe:PATH:PLACE             PROG=uretprobe:PATH:PLACE          PLACE: SYMBOL[+OFFSET] or a file offset
//! PROG=uprobe.multi:PATH:PLACES      PROG=uretprobe.multi:PATH:PLACES   PLACES: a pattern with * and ?, or
//!                                                                       PLACE[#COOKIE],PLACE[#COOKIE],...
//! PROG=uprobe.session:PATH:PLACES    entry and return by one program
//! PROG=usdt:PATH:PROVIDER:NAME
//! ```

use crate::system_calls::{CallPlace, system_call_by_number};
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
    /// The places in the file.
    pub places: Places,
}

/// Places in a file, as a user names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Places {
    /// One.
    One(Place),
    /// Several, each with its own cookie if one is given.
    Several(Vec<(Place, Option<u64>)>),
    /// The functions whose names match a pattern with `*` and `?`.
    Pattern(String),
    /// All places of a statically defined probe.
    Usdt {
        /// Who defines it.
        provider: String,
        /// Its name.
        name: String,
    },
    /// System calls, in whatever file.
    SystemCall(CallPlace),
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
#[error(
    "{text:?}: {reason}; write PROG=uprobe:PATH:SYMBOL[+OFFSET], PROG=uretprobe:PATH:SYMBOL, PROG=uprobe.multi:PATH:PATTERN or PROG=usdt:PATH:PROVIDER:NAME"
)]
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
        let (probe_kind, read): (_, ReadPlaces) = match kind {
            "uprobe" => (ProbeKind::Entry, one),
            "uretprobe" => (ProbeKind::Return, one),
            "uprobe.multi" => (ProbeKind::Entry, several),
            "uretprobe.multi" => (ProbeKind::Return, several),
            "uprobe.session" => (ProbeKind::Session, several),
            "usdt" => (ProbeKind::Entry, usdt),
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
        let places = read(place).map_err(|reason: String| fail(&reason))?;
        Ok(AttachSpec { program: program.into(), kind: probe_kind, path: path.into(), places })
    }
}

type ReadPlaces = fn(&str) -> Result<Places, String>;

fn one(text: &str) -> Result<Places, String> {
    Ok(Places::One(text.parse()?))
}

/// A pattern, or places divided by commas. A cookie stands behind a '#'.
fn several(text: &str) -> Result<Places, String> {
    if text.is_empty() {
        return Err("the pattern is empty".into());
    }
    if text.contains(['*', '?']) {
        return Ok(Places::Pattern(text.into()));
    }
    let place = |text: &str| match text.rsplit_once('#') {
        Some((place, cookie)) => Ok((place.parse()?, Some(number(cookie)?))),
        None => Ok((text.parse()?, None)),
    };
    Ok(Places::Several(text.split(',').map(place).collect::<Result<_, String>>()?))
}

fn usdt(text: &str) -> Result<Places, String> {
    match text.split_once(':') {
        Some((provider, name)) if !provider.is_empty() && !name.is_empty() && !name.contains(':') => {
            Ok(Places::Usdt { provider: provider.into(), name: name.into() })
        }
        _ => Err("a USDT probe is PROVIDER:NAME".into()),
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Places::One(place) => place.fmt(f),
            Places::Several(places) => {
                for (index, (place, _)) in places.iter().enumerate() {
                    write!(f, "{}{place}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Places::Pattern(pattern) => f.write_str(pattern),
            Places::Usdt { provider, name } => write!(f, "{provider}:{name}"),
            Places::SystemCall(place) => match place.number.and_then(system_call_by_number) {
                Some(call) => f.write_str(call.name),
                None => f.write_str("all system calls"),
            },
        }
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
        match spec.places {
            Places::One(place) => (spec.path, place),
            other => panic!("{other:?}"),
        }
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
    fn several_places() {
        let parse = |text: &str| text.parse::<AttachSpec>().unwrap();
        let pattern = parse("p=uprobe.multi:libc.so.6:mem*");
        assert_eq!((pattern.path.as_str(), pattern.kind), ("libc.so.6", ProbeKind::Entry));
        assert_eq!(pattern.places, Places::Pattern("mem*".into()));
        let list = parse("p=uretprobe.multi:./a:work#7,main,0x1139#0x10");
        assert_eq!(list.kind, ProbeKind::Return);
        let expected = vec![
            (symbol("work", 0), Some(7)),
            (symbol("main", 0), None),
            (Place::FileOffset(0x1139), Some(16)),
        ];
        assert_eq!(list.places, Places::Several(expected));
        assert_eq!(list.places.to_string(), "work,main,0x1139");
        let usdt = parse("p=usdt:/usr/bin/python3:python:gc__start");
        assert_eq!(usdt.places, Places::Usdt { provider: "python".into(), name: "gc__start".into() });
        assert_eq!(
            (usdt.path.as_str(), usdt.places.to_string().as_str()),
            ("/usr/bin/python3", "python:gc__start")
        );
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
            "p=uprobe.multi:x:",
            "p=uprobe.multi:x:f,",
            "p=uprobe.multi:x:f#",
            "p=usdt:x:y",
            "p=usdt:x:y:",
            "p=usdt:x:y:z:w",
        ] {
            let error = text.parse::<AttachSpec>().expect_err(text).to_string();
            assert!(error.contains("uprobe:PATH"), "{error}");
        }
    }
}
