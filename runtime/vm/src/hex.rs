//! Programs and memory as hexadecimal text.

use beeline_isa::Insn;

/// Text that is not bytes or not instructions.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HexError {
    /// Not a hexadecimal digit.
    #[error("{0:?} is not a hexadecimal digit")]
    Digit(char),
    /// Half a byte at the end.
    #[error("an odd number of hexadecimal digits")]
    Odd,
    /// A length that is not a multiple of eight.
    #[error("{0} bytes are not whole instructions of eight bytes")]
    Partial(usize),
    /// No instruction at all.
    #[error("the program is empty")]
    Empty,
}

/// Reads bytes; white space between them is ignored.
///
/// # Errors
/// [`HexError`].
pub fn bytes(text: &str) -> Result<Vec<u8>, HexError> {
    let digits = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).map(|digit| digit as u8).ok_or(HexError::Digit(c)))
        .collect::<Result<Vec<u8>, HexError>>()?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(HexError::Odd);
    }
    Ok(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Reads instructions.
///
/// # Errors
/// [`HexError`].
pub fn instructions(text: &str) -> Result<Vec<Insn>, HexError> {
    let bytes = bytes(text)?;
    let (slots, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(HexError::Partial(bytes.len()));
    }
    if slots.is_empty() {
        return Err(HexError::Empty);
    }
    Ok(slots.iter().map(|&slot| Insn::from_bytes(slot)).collect())
}
