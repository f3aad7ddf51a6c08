//! Arguments of statically defined probes (USDT): from assembler notation to what libbpf's `usdt.bpf.h` reads.
//!
//! ```text
//! struct __bpf_usdt_spec { struct __bpf_usdt_arg_spec args[12]; u64 usdt_cookie; short arg_cnt; }
//! struct __bpf_usdt_arg_spec {                     offset
//!     u64 val_off;                                 0      constant or displacement
//!     u8  arg_type;                                8      [`kind`]
//!     u16 idx_reg_off: 12, scale_bitshift: 4;      9      index register, logarithm of its factor
//!     u8  reserved;                                11
//!     s16 reg_off;                                 12     register, as an offset in struct pt_regs
//!     bool arg_signed;                             14
//!     u8  arg_bitshift;                            15     64 - bits
//! }
//! ```
//!
//! Source: libbpf 1.7, `usdt.bpf.h`; earlier versions lay out the same but for the index. `bpf_usdt_arg` computes with it:
//! beyond libbpf, an operand that names a variable is given relative to the instruction pointer, and `%ah` and its like as
//! the byte at offset 1 of their register.

use beeline_abi::regs::PtRegs;
use std::collections::BTreeMap;
use std::mem::offset_of;

/// Name of the map that holds the specifications.
pub(crate) const SPECS_MAP: &str = "__bpf_usdt_specs";
/// `BPF_USDT_MAX_ARG_CNT`.
const ARGUMENTS_MAX: usize = 12;
/// Bytes of one argument's specification.
const ARGUMENT_LEN: usize = 16;
/// Bytes of a specification.
const SPEC_LEN: usize = ARGUMENTS_MAX * ARGUMENT_LEN + 16;

/// `enum __bpf_usdt_arg_type`.
mod kind {
    pub(super) const CONST: u8 = 0;
    pub(super) const REG: u8 = 1;
    pub(super) const REG_DEREF: u8 = 2;
    pub(super) const SIB: u8 = 3;
}

/// What an operand's symbols mean at one place.
pub(crate) struct Surroundings<'a> {
    /// Link-time address of the probe.
    pub(crate) vaddr: u64,
    /// The file is mapped at its link-time addresses.
    pub(crate) fixed: bool,
    /// Link-time address of a variable.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<u64>,
}

/// One argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Argument {
    value: u64,
    kind: u8,
    register: u16,
    index: u16,
    /// Logarithm of the index's factor.
    scale: u16,
    signed: bool,
    bits: u8,
}

/// The specifications of an object: what its `__bpf_usdt_specs` holds.
#[derive(Debug, Default)]
pub(crate) struct Specs {
    specs: Vec<Vec<u8>>,
    /// Those of the link that is being made, by their arguments.
    of_link: BTreeMap<(String, Option<u64>), u32>,
}

impl Specs {
    /// Begins a link: links share no specifications, since each has its cookie.
    pub(crate) fn begin_link(&mut self) {
        self.of_link.clear();
    }

    /// The index of the specification of a place: what `bpf_get_attach_cookie` returns there.
    pub(crate) fn add(
        &mut self,
        arguments: &str,
        cookie: u64,
        around: &Surroundings<'_>,
    ) -> Result<u32, String> {
        // What is relative to the place is not shared between places.
        let place = refers_to_place(arguments).then_some(around.vaddr);
        if let Some(&index) = self.of_link.get(&(arguments.to_owned(), place)) {
            return Ok(index);
        }
        let parsed = parse(arguments, around)?;
        let index = u32::try_from(self.specs.len()).map_err(|_| "too many USDT places".to_owned())?;
        self.specs.push(spec_bytes(&parsed, cookie));
        self.of_link.insert((arguments.to_owned(), place), index);
        Ok(index)
    }

    /// Keys and values of the map: at most `entries`, each `value_len` bytes.
    pub(crate) fn contents(
        &self,
        entries: u32,
        value_len: u32,
    ) -> Result<impl Iterator<Item = (Vec<u8>, Vec<u8>)> + '_, String> {
        if self.specs.len() > entries as usize {
            return Err(format!(
                "there are {} different places of USDT probes and room for {entries}: compile with a larger BPF_USDT_MAX_SPEC_CNT",
                self.specs.len()
            ));
        }
        if (value_len as usize) < SPEC_LEN && !self.specs.is_empty() {
            return Err(format!("its values have {value_len} bytes, not those of usdt.bpf.h ({SPEC_LEN})"));
        }
        Ok(self.specs.iter().enumerate().map(move |(index, spec)| {
            let mut value = spec.clone();
            value.resize(value_len as usize, 0);
            ((index as u32).to_ne_bytes().to_vec(), value)
        }))
    }
}

/// A symbol may stand in it.
fn refers_to_place(arguments: &str) -> bool {
    let arguments =
        arguments.split_whitespace().map(|it| it.split_once('@').map_or(it, |(_, operand)| operand));
    arguments.into_iter().any(|operand| {
        let displacement = operand.trim_start_matches('$').split('(').next().unwrap_or_default();
        !displacement.starts_with('%') && displacement.contains(|c: char| c.is_ascii_alphabetic() || c == '_')
            || operand.contains("(,")
    })
}

fn spec_bytes(arguments: &[Argument], cookie: u64) -> Vec<u8> {
    let mut bytes = vec![0; SPEC_LEN];
    for (at, argument) in bytes.chunks_exact_mut(ARGUMENT_LEN).zip(arguments) {
        at[..8].copy_from_slice(&argument.value.to_le_bytes());
        at[8] = argument.kind;
        at[9..11].copy_from_slice(&(argument.index | argument.scale << 12).to_le_bytes());
        at[12..14].copy_from_slice(&argument.register.to_le_bytes());
        at[14] = u8::from(argument.signed);
        at[15] = 64 - argument.bits;
    }
    let behind = ARGUMENTS_MAX * ARGUMENT_LEN;
    bytes[behind..behind + 8].copy_from_slice(&cookie.to_le_bytes());
    bytes[behind + 8..behind + 10].copy_from_slice(&(arguments.len() as u16).to_le_bytes());
    bytes
}

/// All arguments of a note.
fn parse(text: &str, around: &Surroundings<'_>) -> Result<Vec<Argument>, String> {
    let mut arguments = Vec::new();
    // `:` stands for none in notes of some old compilers.
    let mut rest = text.strip_prefix(':').unwrap_or(text).trim_start();
    while !rest.is_empty() {
        let (one, behind) = split_argument(rest);
        if arguments.len() == ARGUMENTS_MAX {
            return Err(format!("{text:?} has more than {ARGUMENTS_MAX} arguments"));
        }
        let number = arguments.len();
        let parsed = argument(one, around);
        arguments.push(parsed.map_err(|why| format!("argument {number} ({one:?}) {why}"))?);
        rest = behind.trim_start();
    }
    Ok(arguments)
}

/// The first argument: to the first space that is not in parentheses.
fn split_argument(text: &str) -> (&str, &str) {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if c.is_ascii_whitespace() && depth == 0 => return (&text[..at], &text[at..]),
            _ => {}
        }
    }
    (text, "")
}

/// `[SIZE@]OPERAND`.
fn argument(text: &str, around: &Surroundings<'_>) -> Result<Argument, String> {
    let (signed, bits, operand) = match text.split_once('@') {
        Some((size, operand)) if size.trim_start_matches('-').parse::<u8>().is_ok() => {
            let bits = match size.trim_start_matches('-') {
                "1" => 8,
                "2" => 16,
                "4" => 32,
                "8" => 64,
                _ => return Err(format!("has {size} bytes, which is no size of a number")),
            };
            (size.starts_with('-'), bits, operand)
        }
        Some((size, _)) if size.ends_with('f') => return Err("is a floating-point number".to_owned()),
        _ => (false, 64, text),
    };
    Ok(Argument { signed, bits, ..operand_of(operand.trim(), around)? })
}

fn operand_of(operand: &str, around: &Surroundings<'_>) -> Result<Argument, String> {
    if let Some(name) = operand.strip_prefix('%') {
        if name.contains(':') {
            return Err("is in another segment (thread-local)".to_owned());
        }
        return Ok(Argument { kind: kind::REG, register: register(name)?, ..Argument::default() });
    }
    if let Some(constant) = operand.strip_prefix('$') {
        let value = displacement(constant, around)?;
        return match value.symbol {
            // A constant that is known only once the file is mapped cannot be written down.
            true if !around.fixed => {
                Err("is the address of a symbol in position-independent code".to_owned())
            }
            _ => Ok(Argument { kind: kind::CONST, value: value.number, ..Argument::default() }),
        };
    }
    memory(operand, around)
}

/// `DISPLACEMENT(BASE,INDEX,FACTOR)`, everything but one part optional.
fn memory(operand: &str, around: &Surroundings<'_>) -> Result<Argument, String> {
    let (before, registers) = match operand.split_once('(') {
        Some((before, rest)) => (before, Some(rest.strip_suffix(')').ok_or("lacks a closing parenthesis")?)),
        None => (operand, None),
    };
    let value = displacement(before.trim(), around)?;
    let mut parts = registers.unwrap_or_default().split(',').map(str::trim);
    let (base, index, factor) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if parts.next().is_some() {
        return Err("has too many parts in parentheses".to_owned());
    }
    let named = |text: &str| register(text.strip_prefix('%').ok_or("lacks a '%'")?);
    let ip = offset_of!(PtRegs, ip) as u16;
    // Where the symbol is, seen from the probe.
    let from_here = value.number.wrapping_sub(around.vaddr);
    let (base, value) = match base {
        "%rip" | "%eip" if value.symbol => (ip, from_here),
        "" if value.symbol && !around.fixed => {
            return Err("is at an absolute address in position-independent code".to_owned());
        }
        // Nothing but the place itself is sure to be known: an absolute address is given from there.
        "" if around.fixed => (ip, from_here),
        "" => return Err("is at an absolute address".to_owned()),
        _ if value.symbol && !around.fixed => {
            return Err("adds a symbol to a register in position-independent code".to_owned());
        }
        base => (named(base)?, value.number),
    };
    let mut argument = Argument { kind: kind::REG_DEREF, register: base, value, ..Argument::default() };
    if let Some(index) = index.filter(|index| !index.is_empty()) {
        argument.kind = kind::SIB;
        argument.index = named(index)?;
        argument.scale = match factor.unwrap_or("1") {
            "1" | "" => 0,
            "2" => 1,
            "4" => 2,
            "8" => 3,
            _ => return Err("has a factor other than 1, 2, 4 and 8".to_owned()),
        };
    }
    Ok(argument)
}

/// A displacement or constant.
struct Displacement {
    number: u64,
    /// A symbol's address is in it.
    symbol: bool,
}

/// A sum of numbers and at most one symbol; nothing is 0.
fn displacement(text: &str, around: &Surroundings<'_>) -> Result<Displacement, String> {
    let mut sum = Displacement { number: 0, symbol: false };
    let mut rest = text;
    while !rest.is_empty() {
        let (negative, term) = match rest.as_bytes()[0] {
            b'-' => (true, &rest[1..]),
            b'+' => (false, &rest[1..]),
            _ => (false, rest),
        };
        let end = term.find(['+', '-']).unwrap_or(term.len());
        let (term, behind) = term.split_at(end);
        let value = if term.starts_with(|c: char| c.is_ascii_digit()) {
            number(term).ok_or_else(|| format!("has {term:?}, which is no number"))?
        } else if term.is_empty() || negative || sum.symbol {
            return Err("is no address that can be computed".to_owned());
        } else {
            sum.symbol = true;
            (around.variable)(term).ok_or_else(|| format!("names {term}, which the file does not define"))?
        };
        sum.number = if negative { sum.number.wrapping_sub(value) } else { sum.number.wrapping_add(value) };
        rest = behind;
    }
    Ok(sum)
}

/// A number in the assembler's notation.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Offset of a register, of whatever width, in `struct pt_regs`.
fn register(name: &str) -> Result<u16, String> {
    let offset = |at: usize| Ok(at as u16);
    // The second byte of four registers has a name of its own.
    if let [first @ b'a'..=b'd', b'h'] = name.as_bytes() {
        let whole =
            [offset_of!(PtRegs, ax), offset_of!(PtRegs, bx), offset_of!(PtRegs, cx), offset_of!(PtRegs, dx)];
        return offset(whole[usize::from(first - b'a')] + 1);
    }
    for (names, at) in REGISTERS {
        if names.contains(&name) {
            return offset(*at);
        }
    }
    if ["xmm", "ymm", "zmm", "st", "mm"].iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("is in %{name}, which is not in struct pt_regs"));
    }
    Err(format!("is in %{name}, which is no register"))
}

/// Names of each register and its place.
const REGISTERS: &[([&str; 4], usize)] = &[
    (["rip", "eip", "ip", "pc"], offset_of!(PtRegs, ip)),
    (["rax", "eax", "ax", "al"], offset_of!(PtRegs, ax)),
    (["rbx", "ebx", "bx", "bl"], offset_of!(PtRegs, bx)),
    (["rcx", "ecx", "cx", "cl"], offset_of!(PtRegs, cx)),
    (["rdx", "edx", "dx", "dl"], offset_of!(PtRegs, dx)),
    (["rsi", "esi", "si", "sil"], offset_of!(PtRegs, si)),
    (["rdi", "edi", "di", "dil"], offset_of!(PtRegs, di)),
    (["rbp", "ebp", "bp", "bpl"], offset_of!(PtRegs, bp)),
    (["rsp", "esp", "sp", "spl"], offset_of!(PtRegs, sp)),
    (["r8", "r8d", "r8w", "r8b"], offset_of!(PtRegs, r8)),
    (["r9", "r9d", "r9w", "r9b"], offset_of!(PtRegs, r9)),
    (["r10", "r10d", "r10w", "r10b"], offset_of!(PtRegs, r10)),
    (["r11", "r11d", "r11w", "r11b"], offset_of!(PtRegs, r11)),
    (["r12", "r12d", "r12w", "r12b"], offset_of!(PtRegs, r12)),
    (["r13", "r13d", "r13w", "r13b"], offset_of!(PtRegs, r13)),
    (["r14", "r14d", "r14w", "r14b"], offset_of!(PtRegs, r14)),
    (["r15", "r15d", "r15w", "r15b"], offset_of!(PtRegs, r15)),
];

#[cfg(test)]
mod tests {
    use super::*;

    const VADDR: u64 = 0x40_1000;

    fn variable(name: &str) -> Option<u64> {
        match name {
            "counter" => Some(0x40_4010),
            "_ZL5table" => Some(0x3000),
            _ => None,
        }
    }

    fn parse_at(text: &str, fixed: bool) -> Result<Vec<Argument>, String> {
        parse(text, &Surroundings { vaddr: VADDR, fixed, variable: &variable })
    }

    #[track_caller]
    fn check(text: &str, fixed: bool, expected: Argument) {
        assert_eq!(parse_at(text, fixed), Ok(vec![expected]), "{text}");
    }

    const fn of(name_offset: usize) -> u16 {
        name_offset as u16
    }

    #[test]
    fn forms() {
        let ax = of(offset_of!(PtRegs, ax));
        let bp = of(offset_of!(PtRegs, bp));
        let ip = of(offset_of!(PtRegs, ip));
        let none = Argument { bits: 64, ..Argument::default() };
        let register = Argument { kind: kind::REG, register: ax, ..none };
        check("8@%rax", false, register);
        check("%rax", false, register);
        check("-4@%eax", false, Argument { signed: true, bits: 32, ..register });
        check("2@%ax", false, Argument { bits: 16, ..register });
        check("-1@%al", false, Argument { signed: true, bits: 8, ..register });
        check("1@%ah", false, Argument { register: ax + 1, bits: 8, ..register });
        check(
            "-4@%r9d",
            false,
            Argument { signed: true, bits: 32, register: of(offset_of!(PtRegs, r9)), ..register },
        );
        let constant = Argument { kind: kind::CONST, ..none };
        check("4@$71", false, Argument { value: 71, bits: 32, ..constant });
        check("-4@$-9", false, Argument { value: -9i64 as u64, signed: true, bits: 32, ..constant });
        check("8@$0x10", false, Argument { value: 16, ..constant });
        check("8@$18446744073709551615", false, Argument { value: u64::MAX, ..constant });
        check("8@$counter+8", true, Argument { value: 0x40_4018, ..constant });
        let memory = Argument { kind: kind::REG_DEREF, register: bp, ..none };
        check("8@(%rbp)", false, memory);
        check("-4@-20(%rbp)", false, Argument { value: -20i64 as u64, signed: true, bits: 32, ..memory });
        let indexed = Argument { kind: kind::SIB, index: ax, ..memory };
        check("1@-96(%rbp,%rax,8)", false, Argument { value: -96i64 as u64, bits: 8, scale: 3, ..indexed });
        check("8@(%rbp, %rax)", false, indexed);
        check("8@4(%rbp,%rax,2)", false, Argument { value: 4, scale: 1, ..indexed });
        let here = Argument { register: ip, ..memory };
        check("-4@counter(%rip)", false, Argument { value: 0x3010, signed: true, bits: 32, ..here });
        check("8@counter+8(%rip)", false, Argument { value: 0x3018, ..here });
        check("8@8+counter(%rip)", false, Argument { value: 0x3018, ..here });
        check("8@16(%rip)", false, Argument { value: 16, ..here });
        check("8@counter", true, Argument { value: 0x3010, ..here });
        check("8@0x404010", true, Argument { value: 0x3010, ..here });
        let table = 0x3000u64.wrapping_sub(VADDR);
        check("8@_ZL5table(,%rax,4)", true, Argument { value: table, scale: 2, register: ip, ..indexed });
        check("8@_ZL5table-8(%rbp)", true, Argument { value: 0x2ff8, ..memory });
    }

    #[test]
    fn several_and_none() {
        assert_eq!(parse_at("", false), Ok(vec![]));
        assert_eq!(parse_at(":", false), Ok(vec![]));
        let three = parse_at("  -4@%edi 8@16(%rsp, %rbx, 8)  1@$3 ", false).unwrap();
        assert_eq!(three.len(), 3);
        assert_eq!((three[1].kind, three[2].value), (kind::SIB, 3));
        assert_eq!(parse_at(&"8@%rax ".repeat(12), false).unwrap().len(), 12);
    }

    #[test]
    fn refusals_say_which_argument() {
        for (text, why) in [
            ("8@%rax -8f@%xmm0", "argument 1 (\"-8f@%xmm0\") is a floating-point number"),
            ("8@%xmm1", "not in struct pt_regs"),
            ("8@%rux", "no register"),
            ("3@%rax", "has 3 bytes"),
            ("16@%rax", "has 16 bytes"),
            ("8@nothing(%rip)", "names nothing, which the file does not define"),
            ("8@counter(%rax)", "position-independent"),
            ("8@counter", "position-independent"),
            ("8@$counter", "position-independent"),
            ("8@%fs:8", "another segment"),
            ("8@4(%rbp,%rax,3)", "factor"),
            ("8@4(%rbp", "parenthesis"),
            ("8@4(rbp)", "lacks a '%'"),
            ("8@counter-counter(%rip)", "can be computed"),
            ("8@1x(%rbp)", "no number"),
        ] {
            let error = parse_at(text, false).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse_at(&"8@%rax ".repeat(13), false).unwrap_err().contains("more than 12"));
    }

    #[test]
    fn garbage_is_an_error_or_an_argument() {
        let alphabet: Vec<char> = "8@-%$(),+ :raxbpi04\u{e9}".chars().collect();
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            for argument in parse_at(&text, state & 1 == 0).unwrap_or_default() {
                assert!(
                    argument.scale <= 3
                        && argument.register < 168
                        && matches!(argument.bits, 8 | 16 | 32 | 64)
                );
            }
        }
    }

    #[test]
    fn specifications_are_shared_within_a_link() {
        let around = |vaddr| Surroundings { vaddr, fixed: false, variable: &variable };
        let mut specs = Specs::default();
        assert_eq!(specs.add("8@%rdi", 5, &around(0x1000)), Ok(0));
        assert_eq!(specs.add("8@%rdi", 5, &around(0x2000)), Ok(0));
        assert_eq!(specs.add("4@counter(%rip)", 5, &around(0x1000)), Ok(1));
        assert_eq!(specs.add("4@counter(%rip)", 5, &around(0x2000)), Ok(2), "another distance");
        specs.begin_link();
        assert_eq!(specs.add("8@%rdi", 6, &around(0x1000)), Ok(3));
        let contents: Vec<_> = specs.contents(256, 208).unwrap().collect();
        assert_eq!((contents.len(), contents[3].1.len()), (4, 208));
        assert_eq!(contents[3].0, 3u32.to_ne_bytes());
        assert_eq!(contents[3].1[..16], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 112, 0, 0, 0]);
        assert_eq!(contents[3].1[192..202], [6, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert!(specs.contents(3, 208).is_err());
        assert!(specs.contents(256, 100).is_err());
    }
}
