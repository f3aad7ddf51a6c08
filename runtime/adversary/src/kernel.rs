//! What this machine's kernel says of a program. It is loaded, never attached, and dropped at once.
//!
//! Callbacks need type information: each subprogram is a static `int f(void)` to the kernel, which for a static function says
//! nothing about its arguments.

use crate::maps;
use beeline_abi::map::{MapFlags, MapType};
use beeline_isa::{Insn, opcode as o};
use beeline_verifier::{MapInfo, Options, Program};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const PROG_LOAD: i64 = 5;
const BTF_LOAD: i64 = 18;
const MAP_FREEZE: i64 = 22;
const STRICT_ALIGNMENT: u32 = 1;
const SLEEPABLE: u32 = 1 << 4;

/// The kernel with a set of maps.
#[derive(Debug)]
pub struct Kernel {
    maps: Vec<OwnedFd>,
    /// Members of maps of maps stay open.
    _members: Vec<OwnedFd>,
    /// An array of programs belongs to the first program type that uses it: one for each.
    programs: RefCell<BTreeMap<u32, OwnedFd>>,
    programs_info: MapInfo,
    types: OwnedFd,
}

/// BTF id of the functions' type.
const FUNCTION: u32 = 3;

/// BTF of `static int f(void)`.
fn function_types() -> Vec<u8> {
    const NAMES: &[u8] = b"\0int\0f\0\0";
    const INT: u32 = 1 << 24;
    const FUNC: u32 = 12 << 24;
    const FUNC_PROTO: u32 = 13 << 24;
    const SIGNED_32_BITS: u32 = 1 << 24 | 32;
    let types = [[1, INT, 4, SIGNED_32_BITS].as_slice(), &[0, FUNC_PROTO, 1], &[5, FUNC, 2]].concat();
    let bytes = 4 * types.len() as u32;
    let header = [0x0001_eb9f, 24, 0, bytes, bytes, NAMES.len() as u32];
    let words = header.iter().chain(&types).flat_map(|word| word.to_le_bytes());
    words.chain(NAMES.iter().copied()).collect()
}

/// Two `u32` fields in one word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// `bpf(2)` with these words of `union bpf_attr`.
fn bpf(command: i64, words: &[u64]) -> Result<i64, Error> {
    let mut attributes = [0u64; 16];
    attributes[..words.len()].copy_from_slice(words);
    // SAFETY: the attributes are as long as said, and what they point to outlives the call: each caller keeps it on its stack.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(&attributes)) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(fd: i64) -> OwnedFd {
    // SAFETY: a descriptor that the kernel just gave us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

impl Kernel {
    /// Creates the maps.
    ///
    /// # Errors
    /// The kernel has no BPF, or we may not use it.
    pub fn new(maps: &[MapInfo]) -> Result<Kernel, Error> {
        let types = function_types();
        let types =
            bpf(BTF_LOAD, &[types.as_ptr() as u64, 0, pair(types.len() as u32, 0)]).map(descriptor)?;
        let mut kernel = Kernel {
            maps: Vec::new(),
            _members: Vec::new(),
            programs: RefCell::default(),
            programs_info: maps.get(maps::PROGRAMS as usize).cloned().unwrap_or_default(),
            types,
        };
        for info in maps {
            let member = info.inner.as_deref().map(|inner| create(inner, 0)).transpose()?;
            let map = create(info, member.as_ref().map_or(0, |member| member.as_raw_fd() as u32))?;
            if let Some(contents) = &info.frozen_contents {
                let key = 0u32;
                let fd = map.as_raw_fd() as u64;
                bpf(MAP_UPDATE_ELEM, &[fd, &raw const key as u64, contents.as_ptr() as u64, 0])?;
                bpf(MAP_FREEZE, &[fd])?;
            }
            kernel.maps.push(map);
            kernel._members.extend(member);
        }
        Ok(kernel)
    }

    /// True when programs with such instructions mean the same to the kernel as to us.
    pub fn understands(program: &Program) -> bool {
        let known = |insn: &Insn| !insn.is_wide() || !matches!(insn.src(), o::PSEUDO_BTF_ID | 5 | 6);
        // The number of a CPU is as large as the machine.
        let is_cpu = |insn: &Insn| insn.code == o::JMP | o::CALL && insn.src() == 0 && insn.imm == 8;
        program.insns.iter().all(known) && !program.insns.iter().any(is_cpu)
    }

    /// Loads a program; refused: the last line of the log.
    ///
    /// # Errors
    /// As given by the kernel; only verdicts are [`Verdict`]s.
    pub fn verdict(&self, program: &Program, options: &Options) -> Result<Verdict, Error> {
        match self.load(program, options, &mut [])? {
            true => Ok(Verdict::Accepted),
            false => Ok(Verdict::Refused),
        }
    }

    /// The kernel's log of a program that it refuses.
    ///
    /// # Errors
    /// As given by the kernel.
    pub fn log(&self, program: &Program, options: &Options) -> Result<String, Error> {
        let mut log = vec![0; 1 << 20];
        self.load(program, options, &mut log)?;
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        Ok(String::from_utf8_lossy(&log[..end]).into_owned())
    }

    fn load(&self, program: &Program, options: &Options, log: &mut [u8]) -> Result<bool, Error> {
        let code = self.code(program)?;
        let flags = if options.strict_alignment { STRICT_ALIGNMENT } else { 0 };
        let flags = flags | if program.sleepable { SLEEPABLE } else { 0 };
        let functions = functions(&code);
        let words = [
            pair(program.prog_type.0, code.len() as u32),
            code.as_ptr() as u64,
            c"GPL".as_ptr() as u64,
            pair(u32::from(!log.is_empty()), log.len() as u32),
            if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            pair(0, flags),
            0,
            0,
            0,
            if functions.is_empty() { 0 } else { pair(self.types.as_raw_fd() as u32, 8) },
            functions.as_ptr() as u64,
            pair(functions.len() as u32, 0),
        ];
        loop {
            match bpf(PROG_LOAD, &words) {
                Ok(fd) => {
                    drop(descriptor(fd));
                    return Ok(true);
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    // No verdict: no memory, no permission, or more than a million instructions looked at.
                    Some(libc::ENOMEM | libc::EPERM | libc::E2BIG) => return Err(error),
                    _ => return Ok(false),
                },
            }
        }
    }

    /// The array of programs for this program type.
    fn programs(&self, prog_type: u32) -> Result<i32, Error> {
        let mut programs = self.programs.borrow_mut();
        if let Some(map) = programs.get(&prog_type) {
            return Ok(map.as_raw_fd());
        }
        let map = create(&self.programs_info, 0)?;
        Ok(programs.entry(prog_type).or_insert(map).as_raw_fd())
    }

    /// The instructions with descriptors of maps.
    fn code(&self, program: &Program) -> Result<Vec<Insn>, Error> {
        let mut code = program.insns.clone();
        let mut at = 0;
        while at < code.len() {
            let insn = &mut code[at];
            if insn.is_wide() && matches!(insn.src(), o::PSEUDO_MAP_FD | o::PSEUDO_MAP_VALUE) {
                let map = usize::try_from(insn.imm).ok().and_then(|index| self.maps.get(index));
                insn.imm = match map {
                    Some(_) if insn.imm == maps::PROGRAMS as i32 => self.programs(program.prog_type.0)?,
                    Some(map) => map.as_raw_fd(),
                    None => -1,
                };
            }
            at += if insn.is_wide() { 2 } else { 1 };
        }
        Ok(code)
    }
}

/// The starts of all functions with their type, when some function's address is taken.
fn functions(code: &[Insn]) -> Vec<[u32; 2]> {
    let is_reference = |insn: &Insn| insn.is_wide() && insn.src() == o::PSEUDO_FUNC;
    if !code.iter().any(is_reference) {
        return Vec::new();
    }
    let calls = |insn: &Insn| insn.code == o::JMP | o::CALL && insn.src() == o::PSEUDO_CALL;
    let targets = code.iter().enumerate().filter(|(_, insn)| calls(insn) || is_reference(insn));
    let targets = targets.map(|(at, insn)| (at as i64 + 1 + i64::from(insn.imm)) as u32);
    let mut starts = targets.chain([0]).collect::<Vec<_>>();
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().map(|start| [start, FUNCTION]).collect()
}

/// What the kernel says of programs that only it has a reason to refuse, and the reason.
const HARMLESS: [(&str, &str); 10] = [
    ("missing btf func_info", "it gets type information only where there are callbacks"),
    ("without BTF", "the same"),
    ("Sleepable programs can only use", "its maps need protection against their own reclamation"),
    ("verifier bug", "it says itself that it is wrong"),
    ("backtracking", "its own bookkeeping gives up"),
    ("program of this type cannot use helper bpf_probe_write_user", "the machine is locked down"),
    ("cannot use helper bpf_override_return", "it was built without fault injection"),
    ("pointer offset", "its links between numbers that differ by a constant leave the constant behind"),
    ("is too large. Processed", "its budget is spent"),
    ("sequence of", "its budget is spent"),
];

/// True when a program is refused for a reason that is the kernel's alone.
pub fn is_harmless(log: &str) -> bool {
    HARMLESS.iter().any(|(words, _)| log.contains(words))
}

/// What the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It loads it.
    Accepted,
    /// It does not.
    Refused,
}

fn create(info: &MapInfo, inner: u32) -> Result<OwnedFd, Error> {
    let shape = info.shape;
    let is_hash = shape.map_type == MapType::HASH;
    let flags = shape.map_flags | if is_hash { MapFlags::NO_PREALLOC } else { 0 };
    let words =
        [pair(shape.map_type, shape.key_size), pair(shape.value_size, shape.max_entries), pair(flags, inner)];
    bpf(MAP_CREATE, &words).map(descriptor)
}
