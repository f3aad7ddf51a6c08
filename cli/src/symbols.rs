//! Names of functions for addresses of a process.

use blazesym::symbolize::source::{Process, Source};
use blazesym::symbolize::{Input, Symbolizer};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// A function that an address lies in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Named {
    /// Its name, demangled.
    pub(crate) name: String,
    /// Bytes behind its start.
    pub(crate) offset: u64,
}

/// An address of a stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// The address.
    pub(crate) address: u64,
    /// Its function, when that is known: the process lives, and its file has symbols.
    pub(crate) function: Option<Named>,
    /// The name of the file that is mapped there, without its folder.
    pub(crate) file: Option<String>,
}

/// Looks names up, each once.
pub(crate) struct Symbols {
    symbolizer: Symbolizer,
    /// By process and address.
    known: HashMap<(u32, u64), Option<Named>>,
    /// Executable mappings of each process: where they begin and end, and the file's name.
    files: HashMap<u32, Vec<(Range<u64>, String)>>,
}

impl Symbols {
    /// Nothing is known yet.
    pub(crate) fn new() -> Symbols {
        Symbols { symbolizer: Symbolizer::new(), known: HashMap::new(), files: HashMap::new() }
    }

    /// The frames of a stack, innermost first as its addresses are.
    pub(crate) fn frames(&mut self, pid: Option<u32>, addresses: &[u64]) -> Vec<Frame> {
        // All but the innermost are return addresses: what lies before them is the call.
        let at = |index: usize, address: u64| address - u64::from(index > 0 && address > 0);
        let looked_up = addresses.iter().enumerate().map(|(index, &address)| at(index, address));
        if let Some(pid) = pid {
            self.look_up(pid, looked_up.clone());
        }
        let frame = |(index, (&address, place)): (usize, (&u64, u64))| {
            let known = pid.and_then(|pid| self.known.get(&(pid, place)).cloned().flatten());
            let behind = u64::from(index > 0);
            let function = known.map(|it| Named { offset: it.offset + behind, ..it });
            let files = pid.and_then(|pid| self.files.get(&pid)).into_iter().flatten();
            let file = files.into_iter().find(|(range, _)| range.contains(&place));
            Frame { address, function, file: file.map(|(_, name)| name.clone()) }
        };
        addresses.iter().zip(looked_up).enumerate().map(frame).collect()
    }

    fn look_up(&mut self, pid: u32, places: impl Iterator<Item = u64>) {
        let mut new: Vec<u64> = places.filter(|&place| !self.known.contains_key(&(pid, place))).collect();
        new.sort_unstable();
        new.dedup();
        self.files.entry(pid).or_insert_with(|| files_of(pid));
        let mut process = Process::new(pid.into());
        process.debug_syms = false;
        // What a process says of itself in /tmp is anybody's word.
        process.perf_map = false;
        let found = self.symbolizer.symbolize(&Source::Process(process), Input::AbsAddr(&new));
        let found = found.unwrap_or_default();
        for (index, place) in new.iter().enumerate() {
            let named = found
                .get(index)
                .and_then(|it| it.as_sym())
                .map(|sym| Named { name: sym.name.to_string(), offset: sym.offset as u64 });
            self.known.insert((pid, *place), named);
        }
    }
}

/// The files that a process executes; none when it has ended.
fn files_of(pid: u32) -> Vec<(Range<u64>, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter_map(mapping).collect()
}

/// A line of `/proc/PID/maps`, if it is executable and of a file.
fn mapping(line: &str) -> Option<(Range<u64>, String)> {
    let (range, rest) = line.split_once(' ')?;
    let path = rest.get(rest.find('/')?..)?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let name = Path::new(path.trim_end_matches(" (deleted)")).file_name()?.to_string_lossy().into_owned();
    rest.split(' ').next()?.contains('x').then_some((number(start)?..number(end)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let line = "7f00-8000 r-xp 00001000 fe:01 123                        /usr/lib/a b.so (deleted)";
        assert_eq!(mapping(line), Some((0x7f00..0x8000, "a b.so".to_owned())));
        for none in
            ["", "7f00-8000 r--p 0 fe:01 1 /x", "7f00-8000 r-xp 0 00:00 0 [vdso]", "x-y r-xp 0 0 0 /x"]
        {
            assert_eq!(mapping(none), None, "{none}");
        }
    }

    #[test]
    fn functions_of_this_process() {
        let pid = std::process::id();
        let address = functions_of_this_process as *const () as u64;
        let frames = Symbols::new().frames(Some(pid), &[address + 1, address + 1, 8]);
        let named = |offset| Some((offset, true));
        let seen = |frame: &Frame| {
            frame.function.as_ref().map(|it| (it.offset, it.name.contains("functions_of_this_process")))
        };
        assert_eq!(frames.iter().map(seen).collect::<Vec<_>>(), [named(1), named(1), None]);
        assert!(frames[0].file.is_some() && frames[2].file.is_none());
    }
}
