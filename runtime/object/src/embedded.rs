//! Objects inside other files: what a program carries that libbpf's skeletons were compiled into.

use std::ops::Range;

const ELF_HEADER_BYTES: usize = 64;
const ELF_MAGIC: &[u8] = b"\x7fELF\x02\x01";
const EM_BPF: u16 = 247;

/// Where 64-bit little-endian eBPF objects lie in `file`, in order.
///
/// Each ends with its table of sections, where compilers and libbpf's linker put it. What only looks like an object is
/// found too; [`Object::parse`](crate::Object::parse) refuses that.
pub fn objects(file: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = next_magic(file, from) {
        let len = object_len(&file[start..]);
        if let Some(len) = len {
            found.push(start..start + len);
        }
        from = start + len.unwrap_or(ELF_MAGIC.len());
    }
    found
}

fn next_magic(file: &[u8], from: usize) -> Option<usize> {
    let at = file.get(from..)?.windows(ELF_MAGIC.len()).position(|bytes| bytes == ELF_MAGIC)?;
    Some(from + at)
}

/// Bytes of the eBPF object that `bytes` begin with.
fn object_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<ELF_HEADER_BYTES>()?;
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let sections = u64::from_le_bytes(*header[40..].first_chunk::<8>()?);
    let len = sections.checked_add(u64::from(half(58)) * u64::from(half(60)))?;
    let len = usize::try_from(len).ok()?;
    (half(18) == EM_BPF && (ELF_HEADER_BYTES..=bytes.len()).contains(&len)).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object of `sections` empty section headers, behind `text` bytes.
    fn object(machine: u16, text: usize, sections: u16) -> Vec<u8> {
        let mut bytes = vec![0; ELF_HEADER_BYTES + text + usize::from(sections) * 64];
        bytes[..ELF_MAGIC.len()].copy_from_slice(ELF_MAGIC);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[40..48].copy_from_slice(&((ELF_HEADER_BYTES + text) as u64).to_le_bytes());
        bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&sections.to_le_bytes());
        bytes
    }

    #[test]
    fn each_object_is_found_once_and_whole() {
        let x86 = object(62, 100, 3);
        let (small, large) = (object(EM_BPF, 8, 2), object(EM_BPF, 4000, 9));
        let file = [&x86[..], &small, b"between", &large, b"\x7fELF\x02"].concat();
        let ranges = objects(&file);
        assert_eq!(ranges.iter().map(|range| &file[range.clone()]).collect::<Vec<_>>(), [&small[..], &large]);
    }

    #[test]
    fn lengths_that_cannot_be_are_left_out() {
        let mut object = object(EM_BPF, 8, 2);
        for sections in [u64::MAX, object.len() as u64, 0] {
            object[40..48].copy_from_slice(&sections.to_le_bytes());
            object[60] = u8::from(sections != 0) * 2;
            assert_eq!(objects(&object), []);
        }
        assert_eq!(objects(&object[..63]), []);
        assert_eq!(objects(&[]), []);
    }
}
