//! Bytes by their BTF type, and back.

use beeline_object::btf::value::Value;
use beeline_object::btf::{Btf, Kind, Type};

/// The types that describe a map, or an object's events.
#[derive(Debug)]
pub struct Types {
    btf: Btf,
}

/// A value as text or as structure, to be turned into bytes. What JSON can say.
#[derive(Clone, PartialEq, Debug)]
pub enum Literal {
    /// A number, and whether it is negative.
    Integer(i128),
    /// `true` or `false`.
    Bool(bool),
    /// A text: for a character array, an enumerator's name, or a number in text.
    Text(String),
    /// Elements.
    Array(Vec<Literal>),
    /// Members by name; those that are not named are zero.
    Struct(Vec<(String, Literal)>),
}

/// Why a literal is no value of a type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct EncodeError {
    /// Where: a path of members.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

impl Types {
    /// Reads raw BTF. `None` when it is none.
    pub fn parse(bytes: &[u8]) -> Option<Types> {
        Some(Types { btf: Btf::parse_raw(bytes).ok()? })
    }

    /// The value of this type in these bytes; `None` when the type says nothing of them.
    pub fn format(&self, type_id: u32, bytes: &[u8]) -> Option<Value> {
        if type_id == 0 {
            return None;
        }
        self.btf.format_value(type_id, bytes).ok()
    }

    /// The id of the struct, union, typedef or enum with this name; `struct ` and `union ` in front are understood.
    pub fn find(&self, name: &str) -> Option<u32> {
        let (name, kinds): (&str, &[Kind]) = match name.split_once(' ') {
            Some(("struct", rest)) => (rest.trim(), &[Kind::Struct]),
            Some(("union", rest)) => (rest.trim(), &[Kind::Union]),
            _ => (name.trim(), &[Kind::Struct, Kind::Typedef, Kind::Union, Kind::Enum, Kind::Int]),
        };
        kinds.iter().find_map(|&kind| self.btf.find(name, kind)).map(Type::id)
    }

    /// Names of the structs, for a message.
    pub fn struct_names(&self) -> Vec<String> {
        let structs = self.btf.types().filter(|ty| ty.kind() == Kind::Struct && !ty.name().is_empty());
        structs.map(|ty| ty.name().to_owned()).collect()
    }

    /// Bytes of a value of this type.
    pub fn size_of(&self, type_id: u32) -> Option<u32> {
        self.btf.size_of(type_id).ok()
    }

    /// The bytes of a literal of this type, at most `size_max` of them.
    ///
    /// # Errors
    /// [`EncodeError`] names the member that does not fit.
    pub fn encode(&self, type_id: u32, literal: &Literal, size_max: u32) -> Result<Vec<u8>, EncodeError> {
        let fail = |reason: &str| EncodeError { place: "value".into(), reason: reason.into() };
        let size = self
            .size_of(type_id)
            .filter(|&size| size <= size_max)
            .ok_or_else(|| fail("its type has no size"))?;
        let mut bytes = vec![0; size as usize];
        Encoder { btf: &self.btf }.encode(type_id, literal, &mut bytes, "value")?;
        Ok(bytes)
    }
}

struct Encoder<'a> {
    btf: &'a Btf,
}

impl Encoder<'_> {
    fn encode(&self, id: u32, literal: &Literal, out: &mut [u8], place: &str) -> Result<(), EncodeError> {
        let fail = |reason: String| EncodeError { place: place.into(), reason };
        let ty = self.btf.resolve(id).ok_or_else(|| fail("its type cannot be resolved".into()))?;
        match (ty.kind(), literal) {
            (Kind::Struct | Kind::Union, Literal::Struct(fields)) => self.composite(ty, fields, out, place),
            (Kind::DataSec, Literal::Struct(fields)) => self.section(ty, fields, out, place),
            (Kind::Array, Literal::Array(items)) => self.array(ty, items, out, place),
            (Kind::Array, Literal::Text(text)) => {
                if text.len() > out.len() {
                    return Err(fail(format!(
                        "the text has {} bytes, there is room for {}",
                        text.len(),
                        out.len()
                    )));
                }
                out[..text.len()].copy_from_slice(text.as_bytes());
                Ok(())
            }
            (Kind::Enum | Kind::Enum64, Literal::Text(name)) => {
                match ty.enumerators().find(|it| it.name == name) {
                    Some(enumerator) => integer(i128::from(enumerator.value), out).map_err(fail),
                    None => Err(fail(format!("{name:?} is no enumerator of {}", ty.display_name()))),
                }
            }
            (Kind::Int | Kind::Ptr | Kind::Enum | Kind::Enum64, literal) => {
                integer(scalar(literal).map_err(fail)?, out).map_err(fail)
            }
            (kind, _) => Err(fail(format!("{} {} cannot be made from this", kind.name(), ty.display_name()))),
        }
    }

    fn composite(
        &self,
        ty: Type<'_>,
        fields: &[(String, Literal)],
        out: &mut [u8],
        place: &str,
    ) -> Result<(), EncodeError> {
        for (name, literal) in fields {
            let inner = format!("{place}.{name}");
            let fail = |reason: &str| EncodeError { place: inner.clone(), reason: reason.into() };
            let field = self.btf.field(ty.id(), name).ok_or_else(|| fail("there is no such member"))?;
            if field.bit_offset % 8 != 0 || field.bitfield_bits != 0 {
                return Err(fail("bitfields cannot be set; give the bytes"));
            }
            let at = field.byte_offset() as usize;
            let size = self.btf.size_of(field.type_id).map_err(|_| fail("its type has no size"))? as usize;
            let out = out.get_mut(at..at + size).ok_or_else(|| fail("it lies outside of the struct"))?;
            self.encode(field.type_id, literal, out, &inner)?;
        }
        Ok(())
    }

    fn section(
        &self,
        ty: Type<'_>,
        fields: &[(String, Literal)],
        out: &mut [u8],
        place: &str,
    ) -> Result<(), EncodeError> {
        for (name, literal) in fields {
            let inner = format!("{place}.{name}");
            let fail = |reason: &str| EncodeError { place: inner.clone(), reason: reason.into() };
            let named = |var: &beeline_object::btf::SectionVar| {
                self.btf.get(var.type_id).is_some_and(|ty| ty.name() == name)
            };
            let var = ty.section_vars().find(named).ok_or_else(|| fail("there is no such variable"))?;
            let (at, size) = (var.offset as usize, var.size as usize);
            let out = out.get_mut(at..at + size).ok_or_else(|| fail("it lies outside of the section"))?;
            let type_id = self.btf.get(var.type_id).map_or(0, Type::type_id);
            self.encode(type_id, literal, out, &inner)?;
        }
        Ok(())
    }

    fn array(&self, ty: Type<'_>, items: &[Literal], out: &mut [u8], place: &str) -> Result<(), EncodeError> {
        let array = ty.array();
        let fail = |reason: String| EncodeError { place: place.into(), reason };
        if items.len() > array.len as usize {
            return Err(fail(format!("{} elements, there is room for {}", items.len(), array.len)));
        }
        let size = self.btf.size_of(array.element).map_err(|error| fail(error.to_string()))? as usize;
        for (index, item) in items.iter().enumerate() {
            let out = out
                .get_mut(index * size..(index + 1) * size)
                .ok_or_else(|| fail("it lies outside of the array".into()))?;
            self.encode(array.element, item, out, &format!("{place}[{index}]"))?;
        }
        Ok(())
    }
}

fn scalar(literal: &Literal) -> Result<i128, String> {
    match literal {
        Literal::Integer(number) => Ok(*number),
        Literal::Bool(value) => Ok(i128::from(*value)),
        Literal::Text(text) => parse_integer(text).ok_or_else(|| format!("{text:?} is not a number")),
        Literal::Array(_) => Err("a number is expected, not a list".into()),
        Literal::Struct(_) => Err("a number is expected, not a structure".into()),
    }
}

/// A number in C's notation: decimal, `0x`, negative.
pub fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let number = match digits.strip_prefix("0x") {
        Some(hex) => i128::from(u64::from_str_radix(hex, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -number } else { number })
}

/// A little-endian number of 1 to 16 bytes; signed or not, whichever fits.
///
/// # Errors
/// When the number does not fit.
pub fn integer(number: i128, out: &mut [u8]) -> Result<(), String> {
    let bits = out.len() as u32 * 8;
    if bits == 0 || bits > 128 {
        return Err(format!("a number of {} bytes", out.len()));
    }
    if bits < 127 {
        let (lowest, highest) = (-(1i128 << (bits - 1)), (1i128 << bits) - 1);
        if number < lowest || number > highest {
            return Err(format!("{number} does not fit into {} bytes", out.len()));
        }
    }
    out.copy_from_slice(&number.to_le_bytes()[..out.len()]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers() {
        let bytes = |number, len| {
            let mut out = vec![0; len];
            integer(number, &mut out).map(|()| out)
        };
        assert_eq!(bytes(258, 4), Ok(vec![2, 1, 0, 0]));
        assert_eq!(bytes(-1, 2), Ok(vec![255, 255]));
        assert_eq!(bytes(255, 1), Ok(vec![255]));
        assert!(bytes(256, 1).is_err() && bytes(-129, 1).is_err());
        assert_eq!(bytes(i128::from(u64::MAX), 8), Ok(vec![255; 8]));
        assert_eq!(parse_integer("0x10"), Some(16));
        assert_eq!(parse_integer("-7"), Some(-7));
        assert_eq!(parse_integer("ten"), None);
    }
}
