//! Numbers from text, and comparing text.

use crate::error;
use beeline_abi::errno::{EINVAL, ERANGE};
use beeline_abi::run::RunContext;

/// Longest run of digits that is looked at, as in the kernel.
const TEXT_MAX: usize = 63;

/// `isspace` of the kernel's `ctype` table, Latin-1's no-break space included.
pub(crate) const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// Value of a hexadecimal digit, 16 when it is none.
const fn digit(byte: u8) -> u32 {
    match byte {
        b'0'..=b'9' => (byte - b'0') as u32,
        b'a'..=b'f' => (byte - b'a') as u32 + 10,
        b'A'..=b'F' => (byte - b'A') as u32 + 10,
        _ => 16,
    }
}

/// A number as it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Parsed {
    magnitude: u64,
    negative: bool,
    /// Bytes from the start of the text, blanks and sign included.
    consumed: usize,
}

/// Parses blanks, `-`, base prefix, digits; base 0 finds out by the prefix (`__bpf_strtoull`).
fn parse(text: &[u8], flags: u64) -> Result<Parsed, i64> {
    const BASE_MASK: u64 = 0x1f;
    let base = match flags {
        0 | 8 | 10 | 16 => (flags & BASE_MASK) as u32,
        _ => return Err(EINVAL),
    };
    let blanks = text.iter().take_while(|&&byte| is_space(byte)).count();
    let rest = text.get(blanks..).unwrap_or(&[]);
    let negative = rest.first() == Some(&b'-');
    let rest = if negative { rest.get(1..).unwrap_or(&[]) } else { rest };
    let rest = rest.get(..rest.len().min(TEXT_MAX)).unwrap_or(&[]);
    if rest.is_empty() {
        return Err(EINVAL);
    }
    let (prefix, base) = radix(rest, base);
    let mut magnitude = 0u64;
    let mut digits = 0usize;
    let mut overflow = false;
    for &byte in rest.get(prefix..).unwrap_or(&[]) {
        let value = digit(byte);
        if value >= base {
            break;
        }
        let (scaled, over1) = magnitude.overflowing_mul(u64::from(base));
        let (sum, over2) = scaled.overflowing_add(u64::from(value));
        magnitude = sum;
        overflow |= over1 | over2;
        digits += 1;
    }
    match (overflow, digits) {
        (true, _) => Err(ERANGE),
        (false, 0) => Err(EINVAL),
        _ => Ok(Parsed { magnitude, negative, consumed: blanks + usize::from(negative) + prefix + digits }),
    }
}

/// Length of the base prefix and the base (`_parse_integer_fixup_radix`).
fn radix(text: &[u8], base: u32) -> (usize, u32) {
    let at = |index: usize| text.get(index).copied().unwrap_or(0);
    let hex_prefix = at(0) == b'0' && at(1) | 0x20 == b'x';
    let base = match base {
        0 if at(0) != b'0' => 10,
        0 if hex_prefix && digit(at(2)) < 16 => 16,
        0 => 8,
        given => given,
    };
    (if base == 16 && hex_prefix { 2 } else { 0 }, base)
}

/// `strtol`: value and bytes consumed.
fn signed(text: &[u8], flags: u64) -> Result<(i64, usize), i64> {
    let parsed = parse(text, flags)?;
    let value = if parsed.negative { parsed.magnitude.wrapping_neg() } else { parsed.magnitude } as i64;
    if (parsed.negative && value > 0) || (!parsed.negative && value < 0) {
        return Err(ERANGE);
    }
    Ok((value, parsed.consumed))
}

/// `strtoul`: value and bytes consumed.
fn unsigned(text: &[u8], flags: u64) -> Result<(u64, usize), i64> {
    let parsed = parse(text, flags)?;
    if parsed.negative { Err(EINVAL) } else { Ok((parsed.magnitude, parsed.consumed)) }
}

/// `long bpf_strtol(const char *buf, size_t buf_len, u64 flags, s64 *res)`: bytes consumed; `flags` is the base or 0.
///
/// Errors: `-EINVAL` for no digits or another base, `-ERANGE` for overflow; `*res` is 0.
pub(crate) unsafe extern "sysv64" fn strtol(
    text: u64,
    len: u64,
    flags: u64,
    result: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the verifier proved `len` readable bytes and an aligned word for the result.
    unsafe {
        let text = core::slice::from_raw_parts(text as *const u8, len as u32 as usize);
        store(signed(text, flags).map(|(value, consumed)| (value as u64, consumed)), result)
    }
}

/// `long bpf_strtoul(const char *buf, size_t buf_len, u64 flags, u64 *res)`: bytes consumed.
///
/// Errors: as [`strtol`], and `-EINVAL` for a minus sign.
pub(crate) unsafe extern "sysv64" fn strtoul(
    text: u64,
    len: u64,
    flags: u64,
    result: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: as in `strtol`.
    unsafe {
        let text = core::slice::from_raw_parts(text as *const u8, len as u32 as usize);
        store(unsigned(text, flags), result)
    }
}

/// Stores the value, or 0, and returns the bytes consumed, or the error.
unsafe fn store(parsed: Result<(u64, usize), i64>, result: u64) -> u64 {
    let (value, code) = match parsed {
        Ok((value, consumed)) => (value, consumed as u64),
        Err(errno) => (0, error(errno)),
    };
    // SAFETY: the caller has it from the verifier that `result` is a writable word.
    unsafe { (result as *mut u64).write(value) };
    code
}

/// `long bpf_strncmp(const char *s1, u32 s1_sz, const char *s2)`: -1, 0 or 1; compares at most `s1_sz` bytes, up to a
/// NUL. `s2` is NUL-terminated.
pub(crate) unsafe extern "sysv64" fn strncmp(
    first: u64,
    size: u64,
    second: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let (first, second) = (first as *const u8, second as *const u8);
    let mut i = 0usize;
    while i < size as u32 as usize {
        // SAFETY: the verifier proved `size` bytes of the first and the NUL of the second, which ends the loop.
        let (left, right) = unsafe { (*first.add(i), *second.add(i)) };
        if left != right {
            return if left < right { u64::MAX } else { 1 };
        }
        if left == 0 {
            break;
        }
        i += 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_numbers() {
        let check = |text: &[u8], base: u64, expected: Result<(i64, usize), i64>| {
            assert_eq!(
                signed(text, base),
                expected,
                "{} base {base}",
                std::string::String::from_utf8_lossy(text)
            );
        };
        check(b"42", 10, Ok((42, 2)));
        check(b" \t-42rest", 10, Ok((-42, 5)));
        check(b"0x1F", 0, Ok((31, 4)));
        check(b"0x1F", 16, Ok((31, 4)));
        check(b"1F", 16, Ok((31, 2)));
        check(b"0x", 0, Ok((0, 1)));
        check(b"0xg", 16, Err(EINVAL));
        check(b"017", 0, Ok((15, 3)));
        check(b"019", 0, Ok((1, 2)));
        check(b"8", 8, Err(EINVAL));
        check(b"9223372036854775807", 10, Ok((i64::MAX, 19)));
        check(b"9223372036854775808", 10, Err(ERANGE));
        check(b"-9223372036854775808", 10, Ok((i64::MIN, 20)));
        check(b"-9223372036854775809", 10, Err(ERANGE));
        check(b"-0", 10, Ok((0, 2)));
        check(b"", 10, Err(EINVAL));
        check(b"-", 10, Err(EINVAL));
        check(b"--1", 10, Err(EINVAL));
        check(b"+1", 10, Err(EINVAL));
        check(b"   ", 10, Err(EINVAL));
        check(b"1", 2, Err(EINVAL));
        check(b"1", 32, Err(EINVAL));
        check(b"\xa01", 0, Ok((1, 2)));
    }

    #[test]
    fn unsigned_numbers() {
        assert_eq!(unsigned(b"18446744073709551615", 10), Ok((u64::MAX, 20)));
        assert_eq!(unsigned(b"18446744073709551616", 10), Err(ERANGE));
        assert_eq!(unsigned(b"-1", 10), Err(EINVAL));
        let zeros = [b'0'; 70];
        assert_eq!(unsigned(&zeros, 10), Ok((0, TEXT_MAX)), "no more than 63 bytes are looked at");
    }

    #[test]
    fn results_are_stored() {
        let mut run = RunContext::default();
        let mut value = 7u64;
        let text = b"12x";
        // SAFETY: three bytes and a word.
        unsafe {
            let address = &raw mut value as u64;
            assert_eq!(strtoul(text.as_ptr() as u64, 3, 0, address, 0, &mut run), 2);
            assert_eq!(value, 12);
            assert_eq!(strtol(text.as_ptr() as u64 + 2, 1, 0, address, 0, &mut run) as i64, -EINVAL);
        }
        assert_eq!(value, 0);
    }

    #[test]
    fn compare() {
        let check = |first: &[u8], second: &core::ffi::CStr, expected: i64| {
            let mut run = RunContext::default();
            // SAFETY: the sizes are right.
            let result = unsafe {
                strncmp(first.as_ptr() as u64, first.len() as u64, second.as_ptr() as u64, 0, 0, &mut run)
            };
            assert_eq!(result as i64, expected, "{first:?} {second:?}");
        };
        check(b"abc\0", c"abc", 0);
        check(b"abc", c"abcd", 0);
        check(b"abc\0x", c"abcd", -1);
        check(b"abd", c"abcd", 1);
        check(b"\xff", c"a", 1);
        check(b"", c"a", 0);
    }
}
