//! From places as they are named to places in a file: found once, at load.

use crate::EngineError;
use crate::attach_spec::{Place as Named, Places};
use crate::system_calls::{CallPlace, system_call_by_number};
use crate::usdt::{Specs, Surroundings};
use beeline_site::{Binary, Location, Refusal, SymbolKind};
use beeline_store::{Place, Target, TargetForm};
use rustix::fs::{AtFlags, CWD};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Places of one link (`MAX_UPROBE_MULTI_CNT` of the kernel is 2^20; no file has so many functions that can be probed).
const PLACES_MAX: usize = 1 << 20;

/// Finds places, and opens each file once.
#[derive(Default)]
pub(crate) struct Targets {
    binaries: BTreeMap<PathBuf, Arc<Binary>>,
    /// The arguments of the USDT probes among them.
    pub(crate) usdt: Specs,
}

/// What a search is for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The program, for messages.
    pub(crate) program: &'a str,
    /// The file, as it was named.
    pub(crate) path: &'a str,
    /// The places in it.
    pub(crate) places: &'a Places,
    /// `bpf_get_attach_cookie`, `bpf_usdt_cookie` where no place says otherwise.
    pub(crate) cookie: u64,
    /// The object has libbpf's map of USDT specifications.
    pub(crate) has_specs: bool,
}

impl Targets {
    /// The places that are named.
    pub(crate) fn find(&mut self, wanted: &Wanted<'_>) -> Result<Target, EngineError> {
        let fail_at = |place: &dyn std::fmt::Display, reason: String| EngineError::NoPlace {
            program: wanted.program.into(),
            place: format!("{}:{place}", wanted.path),
            reason,
        };
        let fail = |reason: String| match wanted.places {
            // What is wrong with one of them has said so.
            Places::Several(places) => fail_at(&format_args!("({} places)", places.len()), reason),
            places => fail_at(places, reason),
        };
        if let Places::SystemCall(place) = wanted.places {
            return Ok(at_calls(*place, wanted.cookie));
        }
        let found = beeline_site::find_library(wanted.path).map_err(|error| fail(error.to_string()))?;
        // What is probed is the file behind all links, wherever the caller stands.
        let found = found.canonicalize().map_err(|error| fail(error.to_string()))?;
        let binary = self.open(&found).map_err(fail)?;
        let cookie = wanted.cookie;
        let (form, places) = match wanted.places {
            Places::One(place) => (TargetForm::Places, one(&binary, place, cookie).map(|place| vec![place])),
            Places::Several(places) => {
                let each = places.iter().map(|(place, own)| {
                    one(&binary, place, own.unwrap_or(cookie)).map_err(|reason| fail_at(place, reason))
                });
                (TargetForm::Places, Ok(each.collect::<Result<_, _>>()?))
            }
            Places::Pattern(pattern) => {
                (TargetForm::Pattern(pattern.clone()), matching(&binary, pattern, cookie))
            }
            Places::Usdt { provider, name } => {
                let form = TargetForm::Usdt { provider: provider.clone(), name: name.clone() };
                (form, self.usdt_places(&binary, (provider, name), wanted))
            }
            Places::SystemCall(place) => return Ok(at_calls(*place, cookie)),
        };
        let places = places.map_err(fail)?;
        if places.len() > PLACES_MAX {
            return Err(fail(format!("these are {} places, more than {PLACES_MAX}", places.len())));
        }
        let stat =
            rustix::fs::statat(CWD, &found, AtFlags::empty()).map_err(|error| fail(error.to_string()))?;
        Ok(Target {
            path: found,
            device: stat.st_dev,
            inode: stat.st_ino,
            build_id: binary.build_id().unwrap_or_default().to_vec(),
            form,
            places,
        })
    }

    fn open(&mut self, path: &Path) -> Result<Arc<Binary>, String> {
        if let Some(binary) = self.binaries.get(path) {
            return Ok(Arc::clone(binary));
        }
        let opened = Arc::new(Binary::open(path).map_err(|error| chain(&error))?);
        self.binaries.insert(path.into(), Arc::clone(&opened));
        Ok(opened)
    }

    fn usdt_places(
        &mut self,
        binary: &Binary,
        (provider, name): (&str, &str),
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Place>, String> {
        let found = beeline_site::usdt_probe(binary, provider, name).map_err(|error| error.to_string())?;
        self.usdt.begin_link();
        let mut places = Vec::with_capacity(found.len());
        for probe in found {
            let variable = |name: &str| binary.variable(name);
            let around = Surroundings { vaddr: probe.vaddr, fixed: binary.is_fixed(), variable: &variable };
            // A program without the map reads no arguments.
            let cookie = if wanted.has_specs {
                self.usdt.add(&probe.arguments, wanted.cookie, &around)?.into()
            } else {
                wanted.cookie
            };
            places.push(Place {
                symbol: None,
                offset: probe.file_offset,
                file_offset: probe.file_offset,
                cookie,
                semaphore: probe.semaphore,
            });
        }
        Ok(places)
    }
}

/// System calls are made by no file in particular.
fn at_calls(place: CallPlace, cookie: u64) -> Target {
    let symbol = place.number.and_then(system_call_by_number).map(|call| call.name.to_owned());
    Target {
        path: PathBuf::new(),
        device: 0,
        inode: 0,
        build_id: Vec::new(),
        form: TargetForm::SystemCall { number: place.number, context: place.context },
        places: vec![Place { symbol, cookie, ..Place::default() }],
    }
}

fn one(binary: &Binary, place: &Named, cookie: u64) -> Result<Place, String> {
    let (location, symbol, offset) = match place {
        Named::Symbol { name, offset } => {
            (Location::Symbol { name: name.clone(), offset: *offset }, Some(name.clone()), *offset)
        }
        Named::FileOffset(offset) => (Location::FileOffset(*offset), None, *offset),
    };
    let resolved = beeline_site::resolve(binary, &location).map_err(|error| error.to_string())?;
    if !resolved.is_entry
        && let Err(inside @ Refusal::InsideInstruction { .. }) = beeline_site::plan(binary, resolved.vaddr)
    {
        return Err(inside.to_string());
    }
    Ok(Place { symbol, offset, file_offset: resolved.file_offset, cookie, semaphore: None })
}

/// Every function whose name matches, each once, in order of address. One that has several names is named by the first.
fn matching(binary: &Binary, pattern: &str, cookie: u64) -> Result<Vec<Place>, String> {
    let symbols = binary.symbols();
    let mut seen = BTreeSet::new();
    let mut places = Vec::new();
    for symbol in symbols.iter().filter(|symbol| symbol.kind == SymbolKind::Function) {
        let name = symbols.name(symbol);
        if !matches(pattern, name) || !binary.is_executable(symbol.vaddr) {
            continue;
        }
        let Some(file_offset) = binary.file_offset_of(symbol.vaddr) else { continue };
        if seen.insert(file_offset) {
            places.push(Place {
                symbol: Some(name.to_owned()),
                offset: 0,
                file_offset,
                cookie,
                semaphore: None,
            });
        }
    }
    if places.is_empty() {
        let stripped =
            if symbols.stripped() { "; the file is stripped: only exported symbols are known" } else { "" };
        return Err(format!("no function's name matches{stripped}"));
    }
    Ok(places)
}

/// `*` is any text, `?` any character (libbpf's `glob_match`).
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut in_name) = (0, 0);
    // Where to go on when what follows the last `*` does not match.
    let mut again: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, in_name + 1));
                at += 1;
                continue;
            }
            Some(&byte) if byte == b'?' || byte == name[in_name] => {
                at += 1;
                in_name += 1;
                continue;
            }
            _ => {}
        }
        let Some((pattern_at, name_at)) = again else { return false };
        at = pattern_at;
        in_name = name_at;
        again = Some((pattern_at, name_at + 1));
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "malloc"),
            ("mem*", "memcpy"),
            ("*cpy", "memcpy"),
            ("m*c*y", "memcpy"),
            ("m?mc?y", "memcpy"),
            ("memcpy", "memcpy"),
            ("memcpy*", "memcpy"),
            ("**m**", "m"),
            ("*ab*ab", "abxabab"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("?", ""),
            ("mem", "memcpy"),
            ("*cpx", "memcpy"),
            ("m?cpy", "memcpy"),
            ("a*b*c", "acb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
