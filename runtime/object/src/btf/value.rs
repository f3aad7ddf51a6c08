//! Values by their type, as bpftool prints them: a tree of structs, arrays, numbers and text.

use std::fmt;

use super::{Btf, BtfError, INT_BOOL, INT_CHAR, Kind, RESOLVE_DEPTH_MAX, SectionVar, Type};

/// Values in one tree, at most: a hostile type may claim four billion elements without size.
const VALUES_MAX: u32 = 1 << 22;

/// A value that was read.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// An integer of more than eight bytes, little-endian.
    Wide(Vec<u8>),
    /// A `bool`.
    Bool(bool),
    /// A `char`.
    Char(u8),
    /// A floating-point number.
    Float(f64),
    /// An address.
    Pointer(u64),
    /// An enumerator.
    Enum {
        /// Its name; `None` when the value has none.
        name: Option<String>,
        /// Its value.
        value: i64,
    },
    /// An array of characters that ends in a NUL and has only text before it.
    Text(String),
    /// An array.
    Array(Vec<Value>),
    /// A struct or union: members by name. Those of an anonymous struct or union stand in one of an empty name.
    Struct(Vec<(String, Value)>),
    /// A data section: variables by name.
    Section {
        /// The section's name.
        name: String,
        /// Its variables.
        variables: Vec<(String, Value)>,
    },
    /// Bytes of a type that says nothing of them.
    Bytes(Vec<u8>),
}

impl Btf {
    /// Reads a value of type `type_id` from `bytes`, which must be at least as long as the type is.
    pub fn format_value(&self, type_id: u32, bytes: &[u8]) -> Result<Value, BtfError> {
        Reader { btf: self, left: VALUES_MAX }.value(type_id, bytes, RESOLVE_DEPTH_MAX)
    }
}

struct Reader<'a> {
    btf: &'a Btf,
    /// Values that may still be read.
    left: u32,
}

impl Reader<'_> {
    fn value(&mut self, id: u32, bytes: &[u8], depth: usize) -> Result<Value, BtfError> {
        let fail = |reason| BtfError::Size { id, reason };
        let depth = depth.checked_sub(1).ok_or(fail("nested too deeply"))?;
        self.left = self.left.checked_sub(1).ok_or(fail("too many values"))?;
        let ty = self.btf.resolve(id).ok_or(fail("nested too deeply"))?;
        if matches!(ty.kind(), Kind::Var | Kind::DeclTag) {
            return self.value(ty.type_id(), bytes, depth);
        }
        if matches!(ty.kind(), Kind::Void | Kind::Fwd | Kind::Func | Kind::FuncProto) {
            return Ok(Value::Bytes(bytes.to_vec()));
        }
        let size = self.btf.size_of(ty.id())? as usize;
        let bytes = bytes.get(..size).ok_or(fail("the value is shorter than its type"))?;
        match ty.kind() {
            Kind::Int => Ok(integer(ty, bytes)),
            Kind::Ptr => Ok(Value::Pointer(number(bytes))),
            Kind::Float => Ok(float(bytes)),
            Kind::Enum | Kind::Enum64 => Ok(enumerator(ty, number(bytes), 8 * size as u32)),
            Kind::Array => self.array(ty, bytes, depth),
            Kind::Struct | Kind::Union => self.composite(ty, bytes, depth),
            Kind::DataSec => self.section(ty, bytes, depth),
            _ => Ok(Value::Bytes(bytes.to_vec())),
        }
    }

    fn array(&mut self, ty: Type<'_>, bytes: &[u8], depth: usize) -> Result<Value, BtfError> {
        let array = ty.array();
        if let Some(text) = self.text(array.element, bytes) {
            return Ok(Value::Text(text));
        }
        let size = self.btf.size_of(array.element)? as usize;
        let element = |index: usize| bytes.get(index * size..).unwrap_or_default();
        let elements = (0..array.len as usize).map(|index| self.value(array.element, element(index), depth));
        elements.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    /// The text in an array of one-byte integers called `char`. Line ends and tabs are text too, unlike for bpftool:
    /// what protocols send is full of them.
    fn text(&self, element: u32, bytes: &[u8]) -> Option<String> {
        let element = self.btf.resolve(element)?;
        let is_char = element.kind() == Kind::Int
            && element.size() == 1
            && (element.int_encoding() & INT_CHAR != 0 || element.name() == "char");
        if !is_char {
            return None;
        }
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let text = std::str::from_utf8(&bytes[..end]).ok()?;
        let printable = text.chars().all(|c| !c.is_control() || matches!(c, '\r' | '\n' | '\t'));
        printable.then(|| text.to_owned())
    }

    fn composite(&mut self, ty: Type<'_>, bytes: &[u8], depth: usize) -> Result<Value, BtfError> {
        let mut members = Vec::with_capacity(ty.vlen());
        for member in ty.members() {
            let value = if member.bitfield_bits > 0 {
                self.bitfield(member.type_id, bytes, member.bit_offset, member.bitfield_bits)?
            } else {
                let at = (member.bit_offset / 8) as usize;
                self.value(member.type_id, bytes.get(at..).unwrap_or_default(), depth)?
            };
            members.push((member.name.to_owned(), value));
        }
        Ok(Value::Struct(members))
    }

    fn bitfield(&mut self, id: u32, bytes: &[u8], offset: u32, bits: u32) -> Result<Value, BtfError> {
        let fail = |reason| BtfError::Size { id, reason };
        self.left = self.left.checked_sub(1).ok_or(fail("too many values"))?;
        let ty = self.btf.resolve(id).ok_or(fail("nested too deeply"))?;
        if bits > 64 {
            return Err(fail("a bitfield of more than 64 bits"));
        }
        let (first, last) = ((offset / 8) as usize, ((offset + bits - 1) / 8) as usize);
        let window = bytes.get(first..=last).ok_or(fail("the value is shorter than its type"))?;
        let wide = window.iter().rev().fold(0u128, |value, &byte| value << 8 | u128::from(byte));
        let mask = u64::MAX >> (64 - bits);
        let raw = (wide >> (offset % 8)) as u64 & mask;
        Ok(match ty.kind() {
            Kind::Int if ty.int_encoding() & INT_BOOL != 0 => Value::Bool(raw != 0),
            Kind::Int if ty.is_signed() => Value::Signed(sign_extend(raw, bits)),
            Kind::Enum | Kind::Enum64 => enumerator(ty, raw, bits),
            _ => Value::Unsigned(raw),
        })
    }

    fn section(&mut self, ty: Type<'_>, bytes: &[u8], depth: usize) -> Result<Value, BtfError> {
        let mut variables = Vec::with_capacity(ty.vlen());
        for SectionVar { type_id, offset, .. } in ty.section_vars() {
            let bytes = bytes.get(offset as usize..).unwrap_or_default();
            let name = self.btf.type_or_void(type_id).name().to_owned();
            variables.push((name, self.value(type_id, bytes, depth)?));
        }
        Ok(Value::Section { name: ty.name().to_owned(), variables })
    }
}

/// Up to eight little-endian bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn sign_extend(value: u64, bits: u32) -> i64 {
    let unused = 64 - bits.clamp(1, 64);
    ((value << unused) as i64) >> unused
}

fn integer(ty: Type<'_>, bytes: &[u8]) -> Value {
    let raw = number(bytes);
    let encoding = ty.int_encoding();
    if bytes.len() > 8 {
        Value::Wide(bytes.to_vec())
    } else if encoding & INT_BOOL != 0 {
        Value::Bool(raw != 0)
    } else if encoding & INT_CHAR != 0 && bytes.len() == 1 {
        Value::Char(raw as u8)
    } else if ty.is_signed() {
        Value::Signed(sign_extend(raw, 8 * bytes.len() as u32))
    } else {
        Value::Unsigned(raw)
    }
}

fn float(bytes: &[u8]) -> Value {
    match bytes.len() {
        4 => Value::Float(f64::from(f32::from_bits(number(bytes) as u32))),
        8 => Value::Float(f64::from_bits(number(bytes))),
        _ => Value::Bytes(bytes.to_vec()),
    }
}

/// By the bits that the value has: a 32-bit enumerator may have been written signed or not.
fn enumerator(ty: Type<'_>, raw: u64, bits: u32) -> Value {
    let mask = u64::MAX >> (64 - bits.clamp(1, 64));
    let found = ty.enumerators().find(|enumerator| enumerator.bits & mask == raw & mask);
    let value = if ty.is_signed() { sign_extend(raw, bits) } else { raw as i64 };
    Value::Enum { name: found.map(|enumerator| enumerator.name.to_owned()), value }
}

/// JSON on one line, as `bpftool -j` has it: enumerators by name, pointers as numbers, integers of more than eight
/// bytes as hexadecimal text. Other than bpftool's (which prints the raw bits), bitfields are printed by their type.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Signed(value) => write!(f, "{value}"),
            Value::Unsigned(value) => write!(f, "{value}"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Float(value) if value.is_finite() => write!(f, "{value}"),
            Value::Float(value) => write_text(f, &value.to_string()),
            Value::Char(value) => write_text(f, &char::from(*value).to_string()),
            Value::Pointer(value) => write!(f, "{value}"),
            Value::Enum { name: Some(name), .. } => write_text(f, name),
            Value::Enum { name: None, value } => write!(f, "{value}"),
            Value::Text(text) => write_text(f, text),
            Value::Wide(bytes) => {
                write!(f, "\"0x")?;
                let significant = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
                write!(f, "{:x}", bytes.get(significant).copied().unwrap_or(0))?;
                bytes[..significant.min(bytes.len())]
                    .iter()
                    .rev()
                    .try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, "\"")
            }
            Value::Array(elements) => write_list(f, '[', ']', elements.iter(), |f, element| element.fmt(f)),
            Value::Bytes(bytes) => {
                write_list(f, '[', ']', bytes.iter(), |f, byte| write!(f, "\"{byte:#04x}\""))
            }
            Value::Struct(members) => write_list(f, '{', '}', members.iter(), |f, (name, value)| {
                write_text(f, name)?;
                write!(f, ":{value}")
            }),
            Value::Section { name, variables } => {
                write!(f, "{{")?;
                write_text(f, name)?;
                write!(f, ":")?;
                write_list(f, '[', ']', variables.iter(), |f, (name, value)| {
                    write!(f, "{{")?;
                    write_text(f, name)?;
                    write!(f, ":{value}}}")
                })?;
                write!(f, "}}")
            }
        }
    }
}

fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    open: char,
    close: char,
    items: impl Iterator<Item = T>,
    each: impl Fn(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    write!(f, "{open}")?;
    for (position, item) in items.enumerate() {
        if position > 0 {
            write!(f, ",")?;
        }
        each(f, item)?;
    }
    write!(f, "{close}")
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    write!(f, "\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04x}", c as u32)?,
            c => write!(f, "{c}")?,
        }
    }
    write!(f, "\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::INT_SIGNED;
    use crate::btf::builder::Builder;

    #[track_caller]
    fn check(build: impl Fn(&mut Builder) -> u32, bytes: &[u8], expected: &str) {
        let mut builder = Builder::new();
        let id = build(&mut builder);
        let btf = builder.finish();
        assert_eq!(btf.format_value(id, bytes).map(|value| value.to_string()), Ok(expected.to_owned()));
    }

    #[test]
    fn scalars() {
        check(|b| b.int("int", 4, INT_SIGNED), &[0xff; 4], "-1");
        check(|b| b.int("unsigned", 4, 0), &[0xff; 4], "4294967295");
        check(|b| b.int("_Bool", 1, INT_BOOL), &[2], "true");
        check(|b| b.int("char", 1, INT_CHAR), b"x", "\"x\"");
        check(
            |b| b.int("__int128", 16, 0),
            &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            "\"0x20000000000000001\"",
        );
        check(|b| b.pointer(0), &[0x10, 0, 0, 0, 0, 0, 0, 0], "16");
        check(|b| b.float("double", 8), &1.5f64.to_le_bytes(), "1.5");
        let colours = [("RED", 0), ("MINUS", -1)];
        check(|b| b.enumeration("e", 4, true, &colours), &[0xff; 4], "\"MINUS\"");
        check(|b| b.enumeration("e", 4, false, &colours), &[7, 0, 0, 0], "7");
        check(|b| b.enumeration64("e", false, &[("BIG", 1 << 40)]), &(1u64 << 40).to_le_bytes(), "\"BIG\"");
    }

    #[test]
    fn aggregates() {
        let text = |b: &mut Builder| {
            let char = b.int("char", 1, INT_SIGNED);
            b.array(char, 0, 4)
        };
        check(text, b"ab\0x", "\"ab\"");
        check(text, b"abcd", "[97,98,99,100]");
        check(text, b"a\"\\\0", "\"a\\\"\\\\\"");
        let nested = |b: &mut Builder| {
            let int = b.int("int", 4, INT_SIGNED);
            let pair = b.array(int, 0, 2);
            let inner = b.composite(Kind::Struct, "", 8, &[("a", pair, 0, 0)]);
            let inner = b.reference(Kind::Const, "", inner);
            b.composite(Kind::Struct, "s", 12, &[("x", int, 0, 0), ("", inner, 32, 0)])
        };
        check(nested, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0], r#"{"x":1,"":{"a":[2,3]}}"#);
    }

    #[test]
    fn bitfields() {
        let build = |b: &mut Builder| {
            let int = b.int("int", 4, INT_SIGNED);
            let unsigned = b.int("unsigned", 4, 0);
            b.composite(
                Kind::Struct,
                "s",
                4,
                &[("a", unsigned, 0, 3), ("b", int, 3, 2), ("c", unsigned, 5, 9)],
            )
        };
        // a = 5, b = -1, c = 0x101
        let word: u32 = 5 | 3 << 3 | 0x101 << 5;
        check(build, &word.to_le_bytes(), r#"{"a":5,"b":-1,"c":257}"#);
    }

    #[test]
    fn sections() {
        let build = |b: &mut Builder| {
            let int = b.int("int", 4, INT_SIGNED);
            let (x, y) = (b.variable("x", int, 1), b.variable("y", int, 1));
            b.section(".bss", 8, &[(x, 0, 4), (y, 4, 4)])
        };
        check(build, &[1, 0, 0, 0, 2, 0, 0, 0], r#"{".bss":[{"x":1},{"y":2}]}"#);
    }

    #[test]
    fn hostile_types_end() {
        let mut b = Builder::new();
        let empty = b.composite(Kind::Struct, "e", 0, &[]);
        let many = b.array(empty, 0, u32::MAX);
        let own = b.composite(Kind::Struct, "own", 4, &[("own", many + 1, 0, 0)]);
        let btf = b.finish();
        assert!(btf.format_value(many, &[]).is_err());
        assert!(btf.format_value(own, &[0; 4]).is_err());
        let mut b = Builder::new();
        let int = b.int("int", 4, 0);
        let btf = b.finish();
        assert!(btf.format_value(int, &[0; 3]).is_err());
        assert!(btf.format_value(99, &[0; 3]).is_err());
    }
}
