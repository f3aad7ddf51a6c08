//! The kernel's format strings, as `bpf_trace_printk`, `bpf_trace_vprintk` and `bpf_snprintf` take them.
//!
//! As in the kernel there are two passes: [`prepare`](Format::prepare) checks the whole string and fetches what it points
//! to (`bpf_bprintf_prepare`), so that a bad format prints nothing; [`print`](Format::print) cannot fail (`bstr_printf`).
//!
//! ```text
//! %[0 +-]*[1-9][0-9]* { d i u x X, each with l or ll before it · c · s · pks · pus · p px pK ps pS pB · pi4 pI4 pi6 pI6 }
//! ```
//!
//! *Differs*: a pointer is printed as it is, not hashed, and no symbol is looked up for it.

use crate::number::is_space;
use crate::{error, read};
use beeline_abi::errno::{EINVAL, ENOSPC};
use beeline_abi::run::RunContext;
use core::mem::MaybeUninit;

/// Most arguments of a format (`MAX_BPRINTF_VARARGS`).
pub const ARGUMENTS_MAX: usize = 12;

/// Bytes for the arguments of one format, strings included (`MAX_BPRINTF_BIN_ARGS`).
const STORE_LEN: usize = 512;

/// How an argument is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Signed {
        long: bool,
    },
    Unsigned {
        long: bool,
        base: Base,
        upper: bool,
    },
    Char,
    /// `field`: the text is put into its field (`%s`); else the kernel made it in advance (`%pus`, `%pks`).
    String {
        field: bool,
    },
    Pointer,
    Symbol,
    Backtrace,
    Ip {
        six: bool,
        plain: bool,
    },
}

/// One conversion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Spec {
    kind: Kind,
    zero: bool,
    left: bool,
    plus: bool,
    space: bool,
    /// 0 = none.
    width: usize,
    /// Index behind it.
    end: usize,
}

/// A format string and its arguments.
#[derive(Debug)]
pub struct Format {
    text: *const u8,
    len: usize,
    arguments: *const u64,
    count: usize,
    /// Fetched strings, each with its NUL, one behind the other.
    store: MaybeUninit<[u8; STORE_LEN]>,
    store_len: usize,
}

impl Format {
    /// A format of at most `size` bytes, NUL included, with `count` arguments.
    ///
    /// Errors: `EINVAL` when there is no NUL.
    ///
    /// # Safety
    ///
    /// `text` is readable up to its NUL or for `size` bytes, `arguments` for `count` words, as long as the format lives.
    pub unsafe fn new(
        text: *const u8,
        size: usize,
        arguments: *const u64,
        count: usize,
    ) -> Result<Format, i64> {
        let mut len = 0usize;
        // SAFETY: the caller's contract.
        while len < size && unsafe { *text.add(len) } != 0 {
            len += 1;
        }
        if len == size {
            return Err(EINVAL);
        }
        Ok(Format { text, len, arguments, count, store: MaybeUninit::uninit(), store_len: 0 })
    }

    /// The byte at `index`, 0 behind the end.
    fn at(&self, index: usize) -> u8 {
        // SAFETY: within the text.
        if index < self.len { unsafe { *self.text.add(index) } } else { 0 }
    }

    /// Argument `index`, 0 when there is none.
    fn argument(&self, index: usize) -> u64 {
        // SAFETY: within the arguments.
        if index < self.count { unsafe { self.arguments.add(index).read_unaligned() } } else { 0 }
    }

    /// Parses the conversion behind the `%` at `start - 1`.
    fn spec(&self, start: usize) -> Result<Spec, i64> {
        let mut spec = Spec {
            kind: Kind::Char,
            zero: false,
            left: false,
            plus: false,
            space: false,
            width: 0,
            end: start,
        };
        let mut i = start;
        loop {
            match self.at(i) {
                b'0' => spec.zero = true,
                b'-' => spec.left = true,
                b'+' => spec.plus = true,
                b' ' => spec.space = true,
                _ => break,
            }
            i += 1;
        }
        if self.at(i) != b'0' {
            while self.at(i).is_ascii_digit() {
                spec.width = (spec.width * 10 + usize::from(self.at(i) - b'0')).min(WIDTH_MAX);
                i += 1;
            }
        }
        (spec.kind, spec.end) = self.kind(i)?;
        Ok(spec)
    }

    /// Parses what follows flags and width; the index behind it.
    fn kind(&self, start: usize) -> Result<(Kind, usize), i64> {
        let mut i = start;
        match self.at(i) {
            b'p' => return self.pointer_kind(i + 1),
            b's' if self.ends_at(i + 1) => return Ok((Kind::String { field: true }, i + 1)),
            b'c' => return Ok((Kind::Char, i + 1)),
            _ => {}
        }
        let mut long = false;
        for _ in 0..2 {
            if self.at(i) == b'l' {
                long = true;
                i += 1;
            }
        }
        let kind = match self.at(i) {
            b'd' | b'i' => Kind::Signed { long },
            b'u' => Kind::Unsigned { long, base: Base::Ten, upper: false },
            b'x' => Kind::Unsigned { long, base: Base::Sixteen, upper: false },
            b'X' => Kind::Unsigned { long, base: Base::Sixteen, upper: true },
            _ => return Err(EINVAL),
        };
        Ok((kind, i + 1))
    }

    /// Parses what follows `%p`.
    fn pointer_kind(&self, i: usize) -> Result<(Kind, usize), i64> {
        if self.ends_at(i) {
            return Ok((Kind::Pointer, i));
        }
        match (self.at(i), self.at(i + 1)) {
            (b'k' | b'u', b's') if self.ends_at(i + 2) => Ok((Kind::String { field: false }, i + 2)),
            (b'k' | b'u', b's') => Err(EINVAL),
            (b'K' | b'x', _) => Ok((Kind::Pointer, i + 1)),
            (b's' | b'S', _) => Ok((Kind::Symbol, i + 1)),
            (b'B', _) => Ok((Kind::Backtrace, i + 1)),
            (letter @ (b'i' | b'I'), digit @ (b'4' | b'6')) => {
                Ok((Kind::Ip { six: digit == b'6', plain: letter == b'i' }, i + 2))
            }
            _ => Err(EINVAL),
        }
    }

    /// True when a conversion may end before `index`: the text ends, or a blank or a punctuation mark follows.
    fn ends_at(&self, index: usize) -> bool {
        let byte = self.at(index);
        byte == 0 || is_space(byte) || is_punctuation(byte)
    }

    /// Checks the format and fetches its strings.
    ///
    /// Errors: `EINVAL` for a format that the kernel refuses or more conversions than arguments, `ENOSPC` when the
    /// arguments need more than 512 bytes. A string that cannot be read is empty.
    ///
    /// # Safety
    ///
    /// `run` is the calling thread's.
    pub unsafe fn prepare(&mut self, run: *mut RunContext) -> Result<(), i64> {
        let (mut at, mut used, mut number) = (0usize, 0usize, 0usize);
        while let Some(spec) = self.conversion(at, number)? {
            // SAFETY: the caller's contract.
            unsafe { self.take(run, spec.kind, self.argument(number), &mut used)? };
            number += 1;
            at = spec.end;
        }
        Ok(())
    }

    /// The next conversion at or behind `start`, which is number `number`; `None` when only text follows.
    fn conversion(&self, start: usize, number: usize) -> Result<Option<Spec>, i64> {
        let mut i = start;
        while i < self.len {
            let byte = self.at(i);
            // Text may be UTF-8 (Linux 6.18), control characters are refused.
            if byte.is_ascii_control() && !is_space(byte) {
                return Err(EINVAL);
            }
            i += 1;
            if byte != b'%' {
                continue;
            }
            if self.at(i) == b'%' {
                i += 1;
                continue;
            }
            if number >= self.count {
                return Err(EINVAL);
            }
            return self.spec(i).map(Some);
        }
        Ok(None)
    }

    /// True for a format that [`prepare`](Format::prepare) does not refuse, whatever its `count` arguments are, as long as
    /// they need no more than 512 bytes. It ends at its first NUL.
    pub fn is_valid(text: &[u8], count: usize) -> bool {
        let len = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        let format = Format {
            text: text.as_ptr(),
            len,
            arguments: core::ptr::null(),
            count,
            store: MaybeUninit::uninit(),
            store_len: 0,
        };
        let (mut at, mut number) = (0usize, 0usize);
        loop {
            match format.conversion(at, number) {
                Ok(Some(spec)) => (at, number) = (spec.end, number + 1),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Accounts for one argument in `used` as the kernel's buffer does, and fetches a string.
    unsafe fn take(
        &mut self,
        run: *mut RunContext,
        kind: Kind,
        value: u64,
        used: &mut usize,
    ) -> Result<(), i64> {
        let number = |used: usize, size: usize| used.next_multiple_of(4) + size;
        let room = STORE_LEN - *used;
        *used = match kind {
            Kind::String { .. } => {
                if room == 0 {
                    return Err(ENOSPC);
                }
                // SAFETY: the caller's contract.
                *used + unsafe { self.fetch(run, value, room) }
            }
            Kind::Char => *used + 1,
            Kind::Ip { six, .. } => {
                let size = if six { 16 } else { 4 };
                if room < size {
                    return Err(ENOSPC);
                }
                *used + if six { 40 } else { 16 }
            }
            Kind::Backtrace => *used + 19,
            Kind::Signed { long: false } | Kind::Unsigned { long: false, .. } => number(*used, 4),
            Kind::Signed { .. } | Kind::Unsigned { .. } | Kind::Pointer | Kind::Symbol => number(*used, 8),
        };
        match kind {
            // Text that is cut there is cut in the kernel too.
            Kind::String { .. } | Kind::Ip { .. } | Kind::Backtrace => *used = (*used).min(STORE_LEN),
            _ if *used > STORE_LEN => return Err(ENOSPC),
            _ => {}
        }
        Ok(())
    }

    /// Fetches a string into the store; bytes with its NUL.
    unsafe fn fetch(&mut self, run: *mut RunContext, source: u64, room: usize) -> usize {
        let room = room.min(STORE_LEN - self.store_len);
        // SAFETY: `room` bytes are left behind `store_len`.
        let len = unsafe {
            let place = self.store.as_mut_ptr().cast::<u8>().add(self.store_len);
            read::copy_string(run, place, room, source).unwrap_or_else(|| {
                *place = 0;
                1
            })
        };
        self.store_len += len;
        len
    }

    /// Writes the text to `out`, cut to `size - 1` bytes and terminated when `size` is not 0; the length that it has
    /// uncut. [`prepare`](Format::prepare) has succeeded before.
    ///
    /// # Safety
    ///
    /// `run` is the calling thread's, `out` is writable for `size` bytes.
    pub unsafe fn print(&self, run: *mut RunContext, out: *mut u8, size: usize) -> usize {
        let mut out = Out { base: out, size, position: 0 };
        let mut fetched = 0usize;
        let mut number = 0usize;
        let mut i = 0usize;
        while i < self.len {
            let byte = self.at(i);
            i += 1;
            if byte != b'%' || self.at(i) == b'%' {
                out.put(byte);
                i += usize::from(byte == b'%');
                continue;
            }
            // The text may lie in shared memory: what changed since it was checked prints nothing.
            let Ok(spec) = self.spec(i) else { break };
            // SAFETY: the caller's contract.
            unsafe { self.show(run, &mut out, &spec, self.argument(number), &mut fetched) };
            number += 1;
            i = spec.end;
        }
        out.terminate();
        out.position
    }

    /// Writes one argument; `fetched` is the place of the next string in the store.
    unsafe fn show(&self, run: *mut RunContext, out: &mut Out, spec: &Spec, value: u64, fetched: &mut usize) {
        match spec.kind {
            Kind::Signed { long } => {
                let value = if long { value as i64 } else { i64::from(value as i32) };
                let sign = match value {
                    ..0 => Some(b'-'),
                    _ if spec.plus => Some(b'+'),
                    _ if spec.space => Some(b' '),
                    _ => None,
                };
                out.number(spec, sign, value.unsigned_abs(), Base::Ten, false);
            }
            Kind::Unsigned { long, base, upper } => {
                let value = if long { value } else { u64::from(value as u32) };
                out.number(spec, None, value, base, upper);
            }
            Kind::Char => out.text(spec, &[value as u8]),
            Kind::String { field } => {
                let text = self.fetched(*fetched);
                *fetched += text.len() + 1;
                if field { out.text(spec, text) } else { out.finished(text) }
            }
            Kind::Pointer if spec.width == 0 => {
                out.number(&Spec { zero: true, width: 16, ..*spec }, None, value, Base::Sixteen, false);
            }
            Kind::Pointer => out.number(spec, None, value, Base::Sixteen, false),
            Kind::Symbol => out.text(spec, symbol(value).as_bytes()),
            Kind::Backtrace => out.finished(symbol(value).as_bytes()),
            // SAFETY: the caller's contract.
            Kind::Ip { six, plain } => unsafe { out.finished(address(run, value, six, plain).as_bytes()) },
        }
    }

    /// The fetched string at this offset of the store, without its NUL.
    fn fetched(&self, start: usize) -> &[u8] {
        let start = start.min(self.store_len);
        // SAFETY: `store_len` bytes of the store are written.
        let rest = unsafe {
            core::slice::from_raw_parts(self.store.as_ptr().cast::<u8>().add(start), self.store_len - start)
        };
        rest.split(|&byte| byte == 0).next().unwrap_or(&[])
    }
}

/// `ispunct` of the kernel's `ctype` table, which is Latin-1's.
const fn is_punctuation(byte: u8) -> bool {
    byte.is_ascii_punctuation() || matches!(byte, 0xa1..=0xbf | 0xd7 | 0xf7)
}

/// Widest field (`FIELD_WIDTH_MAX`).
const WIDTH_MAX: usize = 1 << 23;

/// A text of at most 48 bytes under construction.
struct Small {
    bytes: [u8; 48],
    len: usize,
}

impl Small {
    fn new() -> Small {
        Small { bytes: [0; 48], len: 0 }
    }

    fn push(&mut self, byte: u8) -> &mut Small {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
        self
    }

    /// Appends a number with at least so many digits.
    fn push_number(&mut self, value: u64, base: Base, least: usize) -> &mut Small {
        let digits = Digits::of(value, base, false);
        for _ in digits.len..least {
            self.push(b'0');
        }
        for &byte in digits.bytes.iter().take(digits.len).rev() {
            self.push(byte);
        }
        self
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// An address as the kernel prints one that has no symbol.
fn symbol(value: u64) -> Small {
    let mut text = Small::new();
    text.push(b'0').push(b'x').push_number(value, Base::Sixteen, 1);
    text
}

/// An IP address in network order in memory, zeros when it cannot be read.
unsafe fn address(run: *mut RunContext, source: u64, six: bool, plain: bool) -> Small {
    let mut bytes = [0u8; 16];
    let len = if six { 16 } else { 4 };
    // SAFETY: `len` bytes fit.
    if !unsafe { read::copy(run, bytes.as_mut_ptr(), len, source) } {
        bytes = [0; 16];
    }
    let mut text = Small::new();
    for (i, &byte) in bytes.iter().take(len).enumerate() {
        match (six, plain) {
            (false, false) if i == 0 => text.push_number(byte.into(), Base::Ten, 1),
            (false, false) => text.push(b'.').push_number(byte.into(), Base::Ten, 1),
            (false, true) if i == 0 => text.push_number(byte.into(), Base::Ten, 3),
            (false, true) => text.push(b'.').push_number(byte.into(), Base::Ten, 3),
            (true, false) if i != 0 && i % 2 == 0 => {
                text.push(b':').push_number(byte.into(), Base::Sixteen, 2)
            }
            (true, _) => text.push_number(byte.into(), Base::Sixteen, 2),
        };
    }
    text
}

/// Base of a number. An enum, so that no division can be one by zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    Ten,
    Sixteen,
}

/// The digits of a number, the last one first.
struct Digits {
    bytes: [u8; 20],
    len: usize,
}

impl Digits {
    fn of(value: u64, base: Base, upper: bool) -> Digits {
        let mut digits = Digits { bytes: [0; 20], len: 0 };
        let mut rest = value;
        for place in &mut digits.bytes {
            let (left, value) = match base {
                Base::Ten => (rest / 10, rest % 10),
                Base::Sixteen => (rest >> 4, rest & 15),
            };
            *place = digit(value, upper);
            rest = left;
            digits.len += 1;
            if rest == 0 {
                break;
            }
        }
        digits
    }
}

/// The character of a digit.
const fn digit(value: u64, upper: bool) -> u8 {
    match value as u8 {
        value @ 0..=9 => b'0' + value,
        value if upper => b'A' + value - 10,
        value => b'a' + value - 10,
    }
}

/// A buffer that counts what does not fit.
struct Out {
    base: *mut u8,
    size: usize,
    position: usize,
}

impl Out {
    fn put(&mut self, byte: u8) {
        if self.position + 1 < self.size {
            // SAFETY: within the buffer.
            unsafe { *self.base.add(self.position) = byte };
        }
        self.position += 1;
    }

    fn pad(&mut self, byte: u8, count: usize) {
        let visible = count.min(self.size.saturating_sub(self.position));
        for _ in 0..visible {
            self.put(byte);
        }
        self.position += count - visible;
    }

    fn terminate(&mut self) {
        if self.size != 0 {
            // SAFETY: within the buffer.
            unsafe { *self.base.add(self.position.min(self.size - 1)) = 0 };
        }
    }

    /// A text in its field (`string_nocheck`).
    fn text(&mut self, spec: &Spec, text: &[u8]) {
        let padding = spec.width.saturating_sub(text.len());
        if !spec.left {
            self.pad(b' ', padding);
        }
        for &byte in text {
            self.put(byte);
        }
        if spec.left {
            self.pad(b' ', padding);
        }
    }

    /// A text that the kernel made in advance: no field, and it counts for nothing once the buffer is full.
    fn finished(&mut self, text: &[u8]) {
        if self.position < self.size {
            for &byte in text {
                self.put(byte);
            }
        }
    }

    /// A number in its field (`number` in `lib/vsprintf.c`).
    fn number(&mut self, spec: &Spec, sign: Option<u8>, value: u64, base: Base, upper: bool) {
        let digits = Digits::of(value, base, upper);
        let len = digits.len;
        let padding = spec.width.saturating_sub(len + usize::from(sign.is_some()));
        if !spec.left && !spec.zero {
            self.pad(b' ', padding);
        }
        if let Some(sign) = sign {
            self.put(sign);
        }
        if !spec.left && spec.zero {
            self.pad(b'0', padding);
        }
        for &byte in digits.bytes.iter().take(len).rev() {
            self.put(byte);
        }
        if spec.left {
            self.pad(b' ', padding);
        }
    }
}

/// Number of arguments in `len` bytes of them.
///
/// Errors: `EINVAL` when that is no whole number of words, more than 12, or `data` is 0.
pub(crate) fn argument_count(data: u64, len: u32) -> Result<usize, i64> {
    if !len.is_multiple_of(8) || len as usize > ARGUMENTS_MAX * 8 || len != 0 && data == 0 {
        return Err(EINVAL);
    }
    Ok(len as usize / 8)
}

/// `long bpf_snprintf(char *str, u32 str_size, const char *fmt, u64 *data, u32 data_len)`: the length of the whole text
/// with its NUL.
///
/// Errors: as [`Format::prepare`], and `-EINVAL` for a bad `data_len`; `str` is untouched then.
pub(crate) unsafe extern "sysv64" fn snprintf(
    out: u64,
    size: u64,
    format: u64,
    data: u64,
    data_len: u64,
    run: *mut RunContext,
) -> u64 {
    let print = || {
        let count = argument_count(data, data_len as u32)?;
        // SAFETY: the verifier proved the sizes of `out` and `data`, and the NUL of the constant format.
        unsafe {
            let mut format = Format::new(format as *const u8, usize::MAX, data as *const u64, count)?;
            format.prepare(run)?;
            // A null pointer with a size is accepted by the verifier: nothing is written then, as with size 0.
            let size = if out == 0 { 0 } else { size as u32 as usize };
            Ok(format.print(run, out as *mut u8, size))
        }
    };
    match print() {
        Ok(len) => len as u64 + 1,
        Err(errno) => error(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ffi::CStr;
    use std::string::String;
    use std::vec;

    fn format(text: &CStr, arguments: &[u64], size: usize) -> Result<(String, usize), i64> {
        let mut run = RunContext::default();
        let mut out = vec![0xaau8; size];
        // SAFETY: all sizes are those of the slices.
        let len = unsafe {
            let bytes = text.to_bytes_with_nul();
            let mut format = Format::new(bytes.as_ptr(), bytes.len(), arguments.as_ptr(), arguments.len())?;
            format.prepare(&mut run)?;
            format.print(&mut run, out.as_mut_ptr(), size)
        };
        let text = out.split(|&byte| byte == 0).next().unwrap();
        Ok((String::from_utf8_lossy(text).into_owned(), len))
    }

    fn check(text: &CStr, arguments: &[u64], expected: &str) {
        assert_eq!(format(text, arguments, 256), Ok((expected.into(), expected.len())), "{text:?}");
    }

    #[test]
    fn numbers() {
        let minus = -5i64 as u64;
        check(c"%d %i|%u|%x|%X", &[minus, 7, minus, 0xbeef, 0xbeef], "-5 7|4294967291|beef|BEEF");
        check(
            c"%ld %lld %lu %llx",
            &[minus, minus, u64::MAX, u64::MAX],
            "-5 -5 18446744073709551615 ffffffffffffffff",
        );
        check(
            c"[%5d] [%-5d] [%05d] [%+d] [% d]",
            &[42, 42, minus, 42, 42],
            "[   42] [42   ] [-0005] [+42] [ 42]",
        );
        check(c"[%-05d]", &[42], "[42   ]");
        check(c"%+x %lld", &[1, i64::MIN as u64], "1 -9223372036854775808");
        check(c"100%% %d%%", &[3], "100% 3%");
        check(c"%c%c|%3c|%-3c|", &[b'a'.into(), b'b'.into(), b'c'.into(), b'd'.into()], "ab|  c|d  |");
    }

    #[test]
    fn pointers() {
        check(
            c"%p %px,%pK",
            &[0x1234, 0xffff_8880_0000_0000, 1],
            "0000000000001234 ffff888000000000,0000000000000001",
        );
        check(c"%20p|%-8px|", &[0x1234, 0x12], "                1234|12      |");
        check(c"%ps %pS %pB", &[0x40, 0x10, 0], "0x40 0x10 0x0");
        let four = [192u8, 168, 0, 1];
        let six = [0x20u8, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let (four, six) = (four.as_ptr() as u64, six.as_ptr() as u64);
        check(c"%pI4 %pi4", &[four, four], "192.168.0.1 192.168.000.001");
        check(
            c"%pI6 %pi6",
            &[six, six],
            "2001:0db8:0000:0000:0000:0000:0000:0001 20010db8000000000000000000000001",
        );
        check(c"%pI4", &[8], "0.0.0.0");
    }

    #[test]
    fn strings() {
        let text = c"hello".as_ptr() as u64;
        check(c"%s, %8s|%-8s|", &[text, text, text], "hello,    hello|hello   |");
        check(c"<%s>", &[0], "<>");
        check(c"\u{e4}%d\u{e4} %s \u{d7}", &[1, text], "\u{e4}1\u{e4} hello \u{d7}");
        check(c"%pus %pks", &[text, text], "hello hello");
        assert_eq!(format(c"%s %d", &[text, 1], 4), Ok(("hel".into(), 7)));
        assert_eq!(format(c"%s", &[text], 1), Ok(("".into(), 5)));
    }

    #[test]
    fn refused_as_by_the_kernel() {
        for bad in [
            c"%",
            c"%d %d",
            c"%f",
            c"%5",
            c"%.3d",
            c"%#x",
            c"%zu",
            c"%sx",
            c"%pz",
            c"%pI5",
            c"%hd",
            c"%lllu",
            c"%n",
            c"%*d",
            c"\x01",
            c"\x7f",
            c"%s\xc3\xa4",
            c"%\xc3",
            c"%5%",
            c"%d%",
        ] {
            assert_eq!(format(bad, &[1], 64), Err(EINVAL), "{bad:?}");
        }
        let long = vec![b'a'; 600];
        let mut long = long;
        long.push(0);
        let long = long.as_ptr() as u64;
        assert_eq!(format(c"%s", &[long], 1024).map(|(text, _)| text.len()), Ok(511));
        assert_eq!(format(c"%s %s", &[long, long], 1024), Err(ENOSPC));
        assert_eq!(format(c"%s %d", &[long, 1], 1024), Err(ENOSPC));
    }

    #[test]
    fn wide_fields_cost_no_time() {
        assert_eq!(format(c"%99999999d%1234567d", &[1, 2], 8), Ok(("       ".into(), WIDTH_MAX + 1_234_567)));
    }

    #[test]
    fn printing_into_memory() {
        let mut run = RunContext::default();
        let mut out = [0xaau8; 8];
        let data = [42u64];
        let (out_at, data_at) = (out.as_mut_ptr() as u64, data.as_ptr() as u64);
        let mut call = |size: u64, format: &CStr, data: u64, len: u64| {
            // SAFETY: the sizes are right.
            unsafe { snprintf(out_at, size, format.as_ptr() as u64, data, len, &mut run) as i64 }
        };
        assert_eq!(call(8, c"n=%d", data_at, 8), 5);
        assert_eq!(call(0, c"n=%d", data_at, 8), 5);
        assert_eq!(call(8, c"n=%d", data_at, 7), -EINVAL);
        assert_eq!(call(8, c"n", 0, 8), -EINVAL);
        assert_eq!(call(8, c"n", data_at, 104), -EINVAL);
        assert_eq!(call(8, c"%d", 0, 0), -EINVAL, "too few arguments");
        assert_eq!(&out[..5], b"n=42\0");
    }
}
