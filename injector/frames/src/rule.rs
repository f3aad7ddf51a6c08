//! One rule of call frame information, as far as a row can hold it (DWARF 5, 6.4; System V AMD64 ABI, 3.6.2).

use beeline_abi::unwind::{Cfa, DWARF_RBP, DWARF_RSP, Rbp, UnwindRow};
use gimli::{CfaRule, EhFrame, EndianSlice, LittleEndian, RegisterRule, UnwindTableRow, X86_64};

/// The section as it is read.
pub(crate) type Section<'a> = EhFrame<EndianSlice<'a, LittleEndian>>;

/// A rule without its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub(crate) cfa: u8,
    pub(crate) cfa_offset: i32,
    pub(crate) rbp: u8,
    pub(crate) rbp_offset: i16,
}

impl Rule {
    /// No rule.
    pub(crate) const UNKNOWN: Rule = Rule { cfa: Cfa::UNKNOWN, cfa_offset: 0, rbp: 0, rbp_offset: 0 };

    /// What a row of the table says; `signal` is true in a signal's frame.
    pub(crate) fn of(section: &Section<'_>, row: &UnwindTableRow<usize>, signal: bool) -> Rule {
        if signal {
            return Rule { cfa: Cfa::SIGNAL, ..Rule::UNKNOWN };
        }
        match row.register(X86_64::RA) {
            Some(RegisterRule::Undefined) => return Rule { cfa: Cfa::OUTERMOST, ..Rule::UNKNOWN },
            Some(RegisterRule::Offset(-8)) => {}
            _ => return Rule::UNKNOWN,
        }
        let with_rbp = || {
            let (cfa, cfa_offset) = cfa(section, row)?;
            let (rbp, rbp_offset) = rbp(section, row)?;
            Some(Rule { cfa, cfa_offset, rbp, rbp_offset })
        };
        with_rbp().unwrap_or(Rule::UNKNOWN)
    }

    /// The row that begins at `start`.
    pub(crate) fn row(self, start: u32) -> UnwindRow {
        let Rule { cfa, cfa_offset, rbp, rbp_offset } = self;
        UnwindRow { start, cfa_offset, rbp_offset, cfa, rbp }
    }
}

fn cfa(section: &Section<'_>, row: &UnwindTableRow<usize>) -> Option<(u8, i32)> {
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } if register.0 < 16 => {
            Some((Cfa::REGISTER + register.0 as u8, i32::try_from(*offset).ok()?))
        }
        CfaRule::RegisterAndOffset { .. } => None,
        CfaRule::Expression(expression) => {
            let expression = expression.get(section).ok()?;
            cfa_expression(expression.0.slice())
        }
    }
}

/// The expressions that compilers and linkers write, as there is a name for.
fn cfa_expression(bytes: &[u8]) -> Option<(u8, i32)> {
    if let Some(threshold) = linkage_table(bytes) {
        return Some((Cfa::LINKAGE, threshold));
    }
    let (register, offset, rest) = register_plus(bytes)?;
    if register != DWARF_RBP && register != DWARF_RSP {
        return None;
    }
    let offset = i32::try_from(offset).ok()?;
    match rest {
        // deref
        [0x06] => Some((Cfa::MEMORY + register, offset)),
        // deref, plus_uconst 8
        [0x06, 0x23, 8] => Some((Cfa::MEMORY_PLUS_8 + register, offset)),
        _ => None,
    }
}

/// `rsp + 8 + ((rip & 15) >= n) << 3`, as linkers write it for a procedure linkage table; n.
fn linkage_table(bytes: &[u8]) -> Option<i32> {
    // breg7 (rsp) 8; breg16 (rip) 0; lit15; and; lit N; ge; lit3; shl; plus
    match bytes {
        [0x77, 8, 0x80, 0, 0x3f, 0x1a, lit @ 0x30..=0x3f, 0x2a, 0x33, 0x24, 0x22] => {
            Some(i32::from(lit - 0x30))
        }
        _ => None,
    }
}

fn rbp(section: &Section<'_>, row: &UnwindTableRow<usize>) -> Option<(u8, i16)> {
    match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => Some((Rbp::SAME, 0)),
        Some(RegisterRule::Undefined) => Some((Rbp::LOST, 0)),
        // A frame whose rbp lies too far away for a row is walked through, without it.
        Some(RegisterRule::Offset(offset)) => {
            Some(i16::try_from(offset).map_or((Rbp::LOST, 0), |offset| (Rbp::AT_CFA, offset)))
        }
        Some(RegisterRule::Expression(expression)) => {
            let expression = expression.get(section).ok()?;
            match register_plus(expression.0.slice()) {
                Some((DWARF_RBP, offset, [])) => Some((Rbp::AT_RBP, i16::try_from(offset).ok()?)),
                _ => Some((Rbp::LOST, 0)),
            }
        }
        Some(_) => Some((Rbp::LOST, 0)),
    }
}

/// An expression that begins with `breg N offset`; what follows.
fn register_plus(bytes: &[u8]) -> Option<(u8, i64, &[u8])> {
    const BREG0: u8 = 0x70;
    let (&first, mut rest) = bytes.split_first()?;
    let register = first.checked_sub(BREG0).filter(|&register| register < 16)?;
    let (mut value, mut shift) = (0i64, 0u32);
    loop {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        value |= i64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte & 0x80 == 0 {
            let sign = if shift < 64 && byte & 0x40 != 0 { -1i64 << shift } else { 0 };
            return Some((register, value | sign, rest));
        }
        if shift > 63 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let linkage = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(cfa_expression(&linkage), Some((Cfa::LINKAGE, 11)));
        // main with a realigned stack: the word at rbp - 8
        assert_eq!(cfa_expression(&[0x76, 0x78, 0x06]), Some((Cfa::MEMORY + DWARF_RBP, -8)));
        // OpenSSL's assembly: the word at rsp + 152, plus 8
        let assembly = [0x77, 0x98, 0x01, 0x06, 0x23, 8];
        assert_eq!(cfa_expression(&assembly), Some((Cfa::MEMORY_PLUS_8 + DWARF_RSP, 152)));
        for bad in [&[][..], &[0x76], &[0x76, 0x80], &[0x73, 0, 0x06], &[0x77, 0, 0x06, 0x22], &[0x96; 80]] {
            assert_eq!(cfa_expression(bad), None, "{bad:?}");
        }
        assert_eq!(register_plus(&[0x76; 1]), None);
        assert_eq!(register_plus(&[[0x76].as_slice(), &[0xff; 20]].concat()), None);
    }
}
