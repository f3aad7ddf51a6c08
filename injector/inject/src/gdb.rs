//! The script by which gdb goes through frames of ours. The layouts in it are those of `beeline-abi`.

use crate::existing::MEMORY_NAME;
use beeline_abi::ABI_VERSION;
use beeline_abi::process::{PROCESS_MAGIC, ProcessBlock};
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot};
use std::mem::offset_of;

const SCRIPT: &str = include_str!("gdb.py");

/// A Python script for gdb 7.10 or later (`gdb -x`) that lets it go through the frames of functions whose return is probed.
pub fn gdb_script() -> String {
    let numbers = [
        ("MAGIC_AT", offset_of!(ProcessBlock, magic) as u64),
        ("MAGIC", PROCESS_MAGIC),
        ("VERSION", u64::from(ABI_VERSION)),
        ("THREADS_AT", offset_of!(ProcessBlock, threads) as u64),
        ("THREAD_SLOTS", THREAD_SLOTS),
        ("THREAD_LEN", size_of::<ThreadSlot>() as u64),
        ("KEY_AT", offset_of!(ThreadSlot, key) as u64),
        ("BASE_AT", offset_of!(ThreadSlot, returns_base) as u64),
        ("TOP_AT", offset_of!(ThreadSlot, returns_top) as u64),
        ("RETURN_LEN", size_of::<ReturnSlot>() as u64),
        ("RETURNS_MAX", RETURN_SLOTS),
        ("POINT_AT", offset_of!(ReturnSlot, trampoline) as u64),
        ("SP_AT", offset_of!(ReturnSlot, sp) as u64),
        ("ADDRESS_AT", offset_of!(ReturnSlot, return_address) as u64),
    ];
    let script = SCRIPT.replace("@MAPPING@", &format!("/memfd:{MEMORY_NAME}"));
    numbers
        .iter()
        .fold(script, |script, (name, number)| script.replace(&format!("@{name}@"), &number.to_string()))
}

/// The version of the block follows its magic number: the script reads both at once.
const _: () = assert!(offset_of!(ProcessBlock, version) == offset_of!(ProcessBlock, magic) + 8);

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_left_open() {
        let script = super::gdb_script();
        assert!(!script.contains('@'), "{script}");
    }
}
