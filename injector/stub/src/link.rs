//! Links a program's code image to the process that it will run in.

use beeline_abi::code::{Reloc, RelocKind, Symbol};

/// Why an image cannot be linked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// A relocation lies outside the image.
    #[error("relocation at {offset:#x} is outside the image of {len:#x} bytes")]
    OutsideImage {
        /// Its offset.
        offset: u32,
        /// Bytes of the image.
        len: usize,
    },
    /// The process has nothing for this symbol.
    #[error("nothing to link {symbol:?} to")]
    Unresolved {
        /// The symbol.
        symbol: Symbol,
    },
    /// A relative reference cannot reach its target, and no jump slot helps.
    #[error("{symbol:?} at {target:#x} is out of reach of the code at {place:#x}")]
    OutOfRange {
        /// The symbol.
        symbol: Symbol,
        /// Its address.
        target: u64,
        /// The place that refers to it.
        place: u64,
    },
}

/// Returns `image` as it has to stand at address `at`: every relocation applied.
///
/// `resolve` gives the address of a symbol. [`Symbol::Image`] is answered here. When a relative reference to a helper does not reach,
/// `jump_slot` is asked for the address of a `jmp` to the helper that is near; it may have none.
///
/// # Errors
/// [`LinkError`] for the first relocation that cannot be applied.
pub fn link_code(
    image: &[u8],
    relocs: &[Reloc],
    at: u64,
    mut resolve: impl FnMut(Symbol) -> Option<u64>,
    mut jump_slot: impl FnMut(u64) -> Option<u64>,
) -> Result<Vec<u8>, LinkError> {
    let mut code = image.to_vec();
    for reloc in relocs {
        let symbol = reloc.symbol;
        let target = match symbol {
            Symbol::Image => at,
            other => resolve(other).ok_or(LinkError::Unresolved { symbol })?,
        };
        let place = at.wrapping_add(u64::from(reloc.offset));
        match reloc.kind {
            RelocKind::Abs64 => {
                let value = target.wrapping_add_signed(reloc.addend);
                bytes_at(&mut code, reloc.offset, 8)?.copy_from_slice(&value.to_le_bytes());
            }
            RelocKind::Rel32 => {
                let distance = |target: u64| relative(target, reloc.addend, place);
                let near = distance(target).or_else(|| match symbol {
                    Symbol::Helper(_) => distance(jump_slot(target)?),
                    _ => None,
                });
                let value = near.ok_or(LinkError::OutOfRange { symbol, target, place })?;
                bytes_at(&mut code, reloc.offset, 4)?.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    Ok(code)
}

fn relative(target: u64, addend: i64, place: u64) -> Option<i32> {
    i32::try_from(i128::from(target) + i128::from(addend) - i128::from(place)).ok()
}

fn bytes_at(code: &mut [u8], offset: u32, len: usize) -> Result<&mut [u8], LinkError> {
    let total = code.len();
    let start = offset as usize;
    code.get_mut(start..start.saturating_add(len)).ok_or(LinkError::OutsideImage { offset, len: total })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reloc(offset: u32, kind: RelocKind, symbol: Symbol, addend: i64) -> Reloc {
        Reloc { offset, kind, symbol, addend }
    }

    #[test]
    fn absolute_and_relative() {
        let relocs = [
            reloc(0, RelocKind::Abs64, Symbol::MapHandle(1), 8),
            reloc(8, RelocKind::Rel32, Symbol::Helper(5), -4),
            reloc(12, RelocKind::Abs64, Symbol::Image, 3),
        ];
        let resolve = |s| match s {
            Symbol::MapHandle(1) => Some(0x7000_0000_0000),
            Symbol::Helper(5) => Some(0x1_2000),
            _ => None,
        };
        let code = link_code(&[0; 20], &relocs, 0x1_0000, resolve, |_| None).unwrap();
        assert_eq!(code[..8], 0x7000_0000_0008u64.to_le_bytes());
        assert_eq!(code[8..12], (0x1_2000i32 - 4 - 0x1_0008).to_le_bytes());
        assert_eq!(code[12..20], 0x1_0003u64.to_le_bytes());
    }

    #[test]
    fn far_helpers_go_through_a_slot_and_far_data_does_not() {
        let far = 0x7f00_0000_0000u64;
        let helper = [reloc(1, RelocKind::Rel32, Symbol::Helper(1), -4)];
        let code = link_code(
            &[0xe8, 0, 0, 0, 0],
            &helper,
            0x1000,
            |_| Some(far),
            |t| {
                assert_eq!(t, far);
                Some(0x2000)
            },
        )
        .unwrap();
        assert_eq!(code[1..], (0x2000i32 - 0x1005).to_le_bytes());
        let data = [reloc(1, RelocKind::Rel32, Symbol::MapData(0), -4)];
        let error = link_code(&[0; 5], &data, 0x1000, |_| Some(far), |_| Some(0x2000)).unwrap_err();
        assert_eq!(error, LinkError::OutOfRange { symbol: Symbol::MapData(0), target: far, place: 0x1001 });
    }

    #[test]
    fn errors_name_the_place() {
        let outside = [reloc(3, RelocKind::Rel32, Symbol::Image, 0)];
        let error = link_code(&[0; 5], &outside, 0, |_| None, |_| None).unwrap_err();
        assert_eq!(error, LinkError::OutsideImage { offset: 3, len: 5 });
        let at_the_end = [reloc(u32::MAX, RelocKind::Abs64, Symbol::Image, 0)];
        assert!(link_code(&[0; 5], &at_the_end, 0, |_| None, |_| None).is_err());
        let unknown = [reloc(0, RelocKind::Rel32, Symbol::Helper(9), 0)];
        let error = link_code(&[0; 5], &unknown, 0, |_| None, |_| None).unwrap_err();
        assert_eq!(error, LinkError::Unresolved { symbol: Symbol::Helper(9) });
    }
}
