//! Instructions from text, for tests: the syntax is what [`beeline_isa::disasm`] prints, with labels.
//!
//! ```text
//! start:
//!     r0 = 1                              r1 = 0x1122334455667788 ll        w2 s>>= 3
//!     r3 = *(u32 *)(r1 +4)                *(u8 *)(r10 -1) = 7               lock *(u64 *)(r1 +0) += r2
//!     if r1 s> 5 goto start               call function                     call #5
//!     r2 = subprog function               r1 = map[idx:0]                   exit
//! ```
//!
//! An opcode in parentheses before an instruction, as the disassembler writes it, tells the wide form of `r1 = 5` from
//! the short one; `ll` does the same.

use beeline_isa::Insn;
use beeline_isa::opcode as o;
use std::collections::HashMap;

/// A line that is not an instruction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {reason}: {text:?}")]
pub struct AssembleError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
    /// What is there.
    pub text: String,
}

/// Where a jump or a reference goes.
enum Target {
    Label(String),
    /// Slots relative to the next instruction.
    Relative(i32),
}

/// Which field of an instruction a target fills.
enum Field {
    Offset,
    Immediate,
}

/// One statement: slots, and the target of the first one.
struct Statement {
    slots: Vec<Insn>,
    target: Option<(Field, Target)>,
}

impl From<Insn> for Statement {
    fn from(insn: Insn) -> Statement {
        Statement { slots: vec![insn], target: None }
    }
}

/// Assembles a program. `#` starts a comment at the beginning of a line or after white space.
///
/// # Errors
/// [`AssembleError`] for the first line that is not an instruction or that names an unknown label.
pub fn assemble(text: &str) -> Result<Vec<Insn>, AssembleError> {
    let mut labels = HashMap::new();
    let mut statements = Vec::new();
    let mut slots = 0;
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split(" # ").next().unwrap_or_default().trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(label) = text.strip_suffix(':') {
            labels.insert(label.to_owned(), slots);
            continue;
        }
        let error = |reason| AssembleError { line, reason, text: text.to_owned() };
        let statement = Parser { rest: text }.statement().map_err(error)?;
        let at = slots;
        slots += statement.slots.len();
        statements.push((line, text, at, statement));
    }
    let mut insns = Vec::with_capacity(slots);
    for (line, text, at, mut statement) in statements {
        if let Some((field, target)) = statement.target {
            let error = |reason| AssembleError { line, reason, text: text.to_owned() };
            let distance = match target {
                Target::Relative(distance) => distance,
                Target::Label(label) => {
                    *labels.get(&label).ok_or_else(|| error("unknown label"))? as i32 - at as i32 - 1
                }
            };
            let insn = &mut statement.slots[0];
            match field {
                Field::Offset => insn.off = distance.try_into().map_err(|_| error("too far"))?,
                Field::Immediate => insn.imm = distance,
            }
        }
        insns.extend(statement.slots);
    }
    Ok(insns)
}

type Parsed<T> = Result<T, &'static str>;

/// A register, with the width that its letter says.
#[derive(Clone, Copy)]
struct Register {
    number: u8,
    wide: bool,
}

/// A memory operand.
struct Place {
    size: u8,
    signed: bool,
    base: u8,
    off: i16,
}

/// Reads one statement from left to right.
struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// Takes this text if it comes next; blanks before it do not matter.
    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, text: &str, reason: &'static str) -> Parsed<()> {
        if self.eat(text) { Ok(()) } else { Err(reason) }
    }

    /// The longest run of characters that satisfy the condition.
    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        let (taken, rest) = rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let opcode = self.opcode()?;
        let statement = self.instruction(opcode == Some(o::LD_IMM64))?;
        if !self.rest.trim().is_empty() {
            return Err("more than one instruction");
        }
        match opcode {
            Some(code) if code != statement.slots[0].code => Err("another opcode than it says"),
            _ => Ok(statement),
        }
    }

    /// `(b7)`.
    fn opcode(&mut self) -> Parsed<Option<u8>> {
        if !self.eat("(") {
            return Ok(None);
        }
        let code =
            u8::from_str_radix(self.take(|c| c.is_ascii_hexdigit()), 16).map_err(|_| "not an opcode")?;
        self.expect(")", "`)` expected")?;
        Ok(Some(code))
    }

    fn instruction(&mut self, wide: bool) -> Parsed<Statement> {
        if self.eat("exit") {
            return Ok(Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0).into());
        }
        if self.eat("may_goto") {
            return self.jump(Insn::new(o::JMP | o::JCOND, 0, 0, 0, 0), Field::Offset);
        }
        if self.eat("gotol") {
            return self.jump(Insn::new(o::JMP32 | o::JA, 0, 0, 0, 0), Field::Immediate);
        }
        if self.eat("goto") {
            return self.jump(Insn::new(o::JMP | o::JA, 0, 0, 0, 0), Field::Offset);
        }
        if self.eat("if ") {
            return self.conditional();
        }
        if self.eat("callx") {
            let register = self.register()?.number;
            return Ok(Insn::new(o::JMP | o::CALL | o::SRC_REG, register, 0, 0, 0).into());
        }
        if self.eat("call") {
            return self.call();
        }
        if self.eat("lock *") {
            return self.locked();
        }
        if self.eat("store_release(") {
            let place = self.place()?;
            self.expect(",", "`,` expected")?;
            let value = self.register()?.number;
            self.expect(")", "`)` expected")?;
            return Ok(place.atomic(value, o::STORE_REL).into());
        }
        if self.eat("*") {
            return self.store();
        }
        self.assignment(wide)
    }

    fn jump(&mut self, insn: Insn, field: Field) -> Parsed<Statement> {
        let target = self.target()?;
        Ok(Statement { slots: vec![insn], target: Some((field, target)) })
    }

    fn target(&mut self) -> Parsed<Target> {
        for prefix in ["pc+", "pc-"] {
            if self.rest.trim_start().starts_with(prefix) {
                self.eat("pc");
                return Ok(Target::Relative(self.number()? as i32));
            }
        }
        let label = self.take(|c| c.is_alphanumeric() || c == '_');
        if label.is_empty() { Err("a label or pc+N expected") } else { Ok(Target::Label(label.to_owned())) }
    }

    fn conditional(&mut self) -> Parsed<Statement> {
        const COMPARISONS: [(&str, u8); 11] = [
            ("==", o::JEQ),
            ("!=", o::JNE),
            ("s>=", o::JSGE),
            ("s<=", o::JSLE),
            ("s>", o::JSGT),
            ("s<", o::JSLT),
            (">=", o::JGE),
            ("<=", o::JLE),
            (">", o::JGT),
            ("<", o::JLT),
            ("&", o::JSET),
        ];
        let dst = self.register()?;
        let found = COMPARISONS.iter().find(|(text, _)| self.eat(text));
        let &(_, comparison) = found.ok_or("a comparison expected")?;
        let class = if dst.wide { o::JMP } else { o::JMP32 };
        let insn = self.second(class | comparison, dst, 0)?;
        self.expect("goto", "`goto` expected")?;
        self.jump(insn, Field::Offset)
    }

    fn call(&mut self) -> Parsed<Statement> {
        if self.eat("kernel-function#") {
            let id = self.number()? as i32;
            return Ok(Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_KFUNC_CALL, 0, id).into());
        }
        if let Some((_, id)) = self.rest.split_once('#') {
            let id = id.trim().parse().map_err(|_| "a helper's number expected")?;
            self.rest = "";
            return Ok(Insn::new(o::JMP | o::CALL, 0, 0, 0, id).into());
        }
        self.jump(Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, 0), Field::Immediate)
    }

    fn locked(&mut self) -> Parsed<Statement> {
        const OPERATIONS: [(&str, i32); 4] = [("+=", 0), ("|=", 0x40), ("&=", 0x50), ("^=", 0xa0)];
        let place = self.place()?;
        let found = OPERATIONS.iter().find(|(text, _)| self.eat(text));
        let &(_, operation) = found.ok_or("an operation expected")?;
        let value = self.register()?.number;
        Ok(place.atomic(value, operation).into())
    }

    fn store(&mut self) -> Parsed<Statement> {
        let place = self.place()?;
        self.expect("=", "`=` expected")?;
        if self.at_register() {
            let value = self.register()?.number;
            return Ok(Insn::new(o::STX | o::MEM | place.size, place.base, value, place.off, 0).into());
        }
        let number = self.number()? as i32;
        Ok(Insn::new(o::ST | o::MEM | place.size, place.base, 0, place.off, number).into())
    }

    fn assignment(&mut self, wide: bool) -> Parsed<Statement> {
        let dst = self.register()?;
        if !self.eat("=") {
            return self.arithmetic(dst);
        }
        if let Some(insn) = self.atomic_value(dst)? {
            return Ok(insn.into());
        }
        if self.eat("*") {
            return self.load(dst);
        }
        if let Some(insn) = self.byte_order(dst)? {
            return Ok(insn.into());
        }
        if self.eat("(s") {
            let bits = self.number()? as i16;
            self.expect(")", "`)` expected")?;
            let src = self.register()?.number;
            return Ok(Insn::new(alu_class(dst) | o::MOV | o::SRC_REG, dst.number, src, bits, 0).into());
        }
        if self.rest.trim_start().starts_with("-r") || self.rest.trim_start().starts_with("-w") {
            self.eat("-");
            self.register()?;
            return Ok(Insn::new(alu_class(dst) | o::NEG, dst.number, 0, 0, 0).into());
        }
        if let Some(statement) = self.reference(dst)? {
            return Ok(statement);
        }
        if self.at_register() {
            return Ok(self.second(alu_class(dst) | o::MOV, dst, 0)?.into());
        }
        let number = self.number()?;
        if wide || self.eat("ll") {
            return Ok(wide_immediate(dst, 0, number as i32, (number >> 32) as i32));
        }
        let number = immediate(number)?;
        Ok(Insn::new(alu_class(dst) | o::MOV, dst.number, 0, 0, number).into())
    }

    fn arithmetic(&mut self, dst: Register) -> Parsed<Statement> {
        const OPERATIONS: [(&str, u8, i16); 13] = [
            ("s>>=", o::ARSH, 0),
            ("s/=", o::DIV, 1),
            ("s%=", o::MOD, 1),
            ("<<=", o::LSH, 0),
            (">>=", o::RSH, 0),
            ("+=", o::ADD, 0),
            ("-=", o::SUB, 0),
            ("*=", o::MUL, 0),
            ("/=", o::DIV, 0),
            ("%=", o::MOD, 0),
            ("|=", o::OR, 0),
            ("&=", o::AND, 0),
            ("^=", o::XOR, 0),
        ];
        let found = OPERATIONS.iter().find(|(text, _, _)| self.eat(text));
        let &(_, operation, off) = found.ok_or("an operation expected")?;
        Ok(self.second(alu_class(dst) | operation, dst, off)?.into())
    }

    fn atomic_value(&mut self, dst: Register) -> Parsed<Option<Insn>> {
        const OPERATIONS: [(&str, i32); 7] = [
            ("load_acquire(", o::LOAD_ACQ),
            ("fetch_add(", o::FETCH),
            ("fetch_or(", 0x40 | o::FETCH),
            ("fetch_and(", 0x50 | o::FETCH),
            ("fetch_xor(", 0xa0 | o::FETCH),
            ("xchg(", o::XCHG),
            ("cmpxchg(", o::CMPXCHG),
        ];
        let _ = self.eat("atomic64_") || self.eat("atomic_");
        let Some(&(_, operation)) = OPERATIONS.iter().find(|(text, _)| self.eat(text)) else {
            return Ok(None);
        };
        let place = self.place()?;
        if operation == o::LOAD_ACQ {
            self.expect(")", "`)` expected")?;
            let base = place.base;
            return Ok(Some(Insn::new(
                o::STX | o::ATOMIC | place.size,
                dst.number,
                base,
                place.off,
                operation,
            )));
        }
        if operation == o::CMPXCHG {
            self.expect(", r0", "`, r0` expected")?;
        }
        self.expect(",", "`,` expected")?;
        let value = self.register()?.number;
        self.expect(")", "`)` expected")?;
        Ok(Some(place.atomic(value, operation)))
    }

    fn load(&mut self, dst: Register) -> Parsed<Statement> {
        if self.rest.contains("skb[") {
            return self.packet();
        }
        let place = self.place()?;
        let mode = if place.signed { o::MEMSX } else { o::MEM };
        Ok(Insn::new(o::LDX | mode | place.size, dst.number, place.base, place.off, 0).into())
    }

    /// `(u32 *)skb[16]`, `(u16 *)skb[r1 + 2]`.
    fn packet(&mut self) -> Parsed<Statement> {
        let (size, _) = self.pointer_type()?;
        self.expect("skb[", "`skb[` expected")?;
        let (mode, src) = if self.at_register() {
            let register = self.register()?.number;
            self.expect("+", "`+` expected")?;
            (o::IND, register)
        } else {
            (o::ABS, 0)
        };
        let number = self.number()? as i32;
        self.expect("]", "`]` expected")?;
        Ok(Insn::new(o::LD | mode | size, 0, src, 0, number).into())
    }

    fn byte_order(&mut self, dst: Register) -> Parsed<Option<Insn>> {
        let kinds = [("be", o::ALU | o::SRC_REG), ("le", o::ALU), ("bswap", o::ALU64)];
        for (name, class) in kinds {
            if self.eat(name) {
                let bits = self.number()? as i32;
                self.register()?;
                return Ok(Some(Insn::new(class | o::END, dst.number, 0, 0, bits)));
            }
        }
        Ok(None)
    }

    /// `map[idx:0]`, `map[idx:0][0]+8`, `subprog label`, `subprog[+2]`.
    fn reference(&mut self, dst: Register) -> Parsed<Option<Statement>> {
        if self.eat("map[idx:") {
            let map = self.number()? as i32;
            self.expect("]", "`]` expected")?;
            if self.eat("[0]") {
                let offset = self.number()? as i32;
                return Ok(Some(wide_immediate(dst, o::PSEUDO_MAP_VALUE, map, offset)));
            }
            return Ok(Some(wide_immediate(dst, o::PSEUDO_MAP_FD, map, 0)));
        }
        if !self.eat("subprog") {
            return Ok(None);
        }
        let target = if self.eat("[") {
            let distance = self.number()? as i32;
            self.expect("]", "`]` expected")?;
            Target::Relative(distance)
        } else {
            self.target()?
        };
        let mut statement = wide_immediate(dst, o::PSEUDO_FUNC, 0, 0);
        statement.target = Some((Field::Immediate, target));
        Ok(Some(statement))
    }

    /// Completes an instruction with its second operand.
    fn second(&mut self, code: u8, dst: Register, off: i16) -> Parsed<Insn> {
        if self.at_register() {
            let src = self.register()?.number;
            return Ok(Insn::new(code | o::SRC_REG, dst.number, src, off, 0));
        }
        let number = immediate(self.number()?)?;
        Ok(Insn::new(code, dst.number, 0, off, number))
    }

    fn at_register(&self) -> bool {
        let mut letters = self.rest.trim_start().chars();
        matches!(letters.next(), Some('r' | 'w')) && letters.next().is_some_and(|c| c.is_ascii_digit())
    }

    fn register(&mut self) -> Parsed<Register> {
        if !self.at_register() {
            return Err("a register expected");
        }
        let wide = self.eat("r");
        if !wide {
            self.eat("w");
        }
        let number = self.take(|c| c.is_ascii_digit()).parse().map_err(|_| "a register expected")?;
        if number > 10 { Err("registers end at r10") } else { Ok(Register { number, wide }) }
    }

    /// Decimal or `0x` hexadecimal, signed; wraps at 64 bits.
    fn number(&mut self) -> Parsed<i64> {
        let negative = self.eat("-");
        if !negative {
            self.eat("+");
        }
        let (digits, radix) = if self.eat("0x") {
            (self.take(|c| c.is_ascii_hexdigit()), 16)
        } else {
            (self.take(|c| c.is_ascii_digit()), 10)
        };
        let magnitude = u64::from_str_radix(digits, radix).map_err(|_| "a number expected")? as i64;
        Ok(if negative { magnitude.wrapping_neg() } else { magnitude })
    }

    /// `(u64 *)`: size code, and whether it is signed.
    fn pointer_type(&mut self) -> Parsed<(u8, bool)> {
        self.expect("(", "`(` expected")?;
        let signed = self.eat("s");
        if !signed {
            self.expect("u", "a type expected")?;
        }
        let size = match self.number()? {
            8 => o::B,
            16 => o::H,
            32 => o::W,
            64 => o::DW,
            _ => return Err("a size of 8, 16, 32 or 64 expected"),
        };
        self.expect("*)", "`*)` expected")?;
        Ok((size, signed))
    }

    /// `(u64 *)(r10 -8)`.
    fn place(&mut self) -> Parsed<Place> {
        let (size, signed) = self.pointer_type()?;
        self.expect("(", "`(` expected")?;
        let base = self.register()?.number;
        let off = self.number()?.try_into().map_err(|_| "the offset does not fit")?;
        self.expect(")", "`)` expected")?;
        Ok(Place { size, signed, base, off })
    }
}

impl Place {
    fn atomic(&self, value: u8, operation: i32) -> Insn {
        Insn::new(o::STX | o::ATOMIC | self.size, self.base, value, self.off, operation)
    }
}

fn alu_class(dst: Register) -> u8 {
    if dst.wide { o::ALU64 } else { o::ALU }
}

/// A 32-bit immediate, written signed or unsigned.
fn immediate(number: i64) -> Parsed<i32> {
    let fits = number >= i64::from(i32::MIN) && number <= i64::from(u32::MAX);
    if fits { Ok(number as i32) } else { Err("the number does not fit into 32 bits") }
}

fn wide_immediate(dst: Register, kind: u8, low: i32, high: i32) -> Statement {
    let slots = vec![Insn::new(o::LD_IMM64, dst.number, kind, 0, low), Insn::new(0, 0, 0, 0, high)];
    Statement { slots, target: None }
}
