//! Programs that the adversary found (`cargo xtask fuzz verifier`), made small: each was accepted once with a claim that was
//! not true.

use beeline_abi::map::{MapShape, MapType};
use beeline_isa::Insn;
use beeline_verifier::{MapInfo, Options, ProgType, Program, Rejection, Verified, verify};

fn insns(hex: &str) -> Vec<Insn> {
    let slot = |word: &str| u64::from_str_radix(word, 16).expect("hexadecimal").to_be_bytes();
    hex.split_whitespace().map(|word| Insn::from_bytes(slot(word))).collect()
}

fn map(map_type: u32, value_size: u32, max_entries: u32) -> MapInfo {
    let shape = MapShape { map_type, key_size: 4, value_size, max_entries, map_flags: 0, cpus: 2 };
    MapInfo { name: "map".into(), shape, ..MapInfo::default() }
}

/// Verifies a uprobe program with three maps: an array of four values, a global of 32 bytes, programs.
fn check(hex: &str) -> Result<Verified, Rejection> {
    let maps = vec![map(MapType::ARRAY, 16, 4), map(MapType::ARRAY, 32, 1), map(MapType::PROG_ARRAY, 4, 4)];
    let (insns, prog_type) = (insns(hex), ProgType::KPROBE);
    let program = Program { prog_type, gpl_compatible: true, insns, maps, ..Program::default() };
    verify(program, &Options::default())
}

/// The subprogram returns 0, unless its tail call succeeds: then it returns what the other program returns.
#[test]
fn a_tail_call_returns_anything_from_a_subprogram() {
    let refused = check(
        "bf16000000000000 bf63000000000000 b704000000000000 8510000005000000 1825000001000000 0000000000000000
         bf58000000000000 0f08000000000000 9500000000000000
         bf48000000000000 bf31000000000000 1812000002000000 0000000000000000 b703000000000000 850000000c000000
         bf80000000000000 9500000000000000",
    );
    let reason = refused.expect_err("the sum of a pointer and any number").reason;
    assert!(reason.contains("unbounded min value"), "{reason}");
}

/// Two constants meet before the look-up; neither decides anything, so the second path is pruned.
#[test]
fn a_key_that_was_pruned_is_not_said_to_be_constant() {
    let verified = check(
        "3d11020000000000 b700000009000000 0500010000000000 b700000007000000 630af0ff00000000 bfa2000000000000
         07020000f0ffffff 1811000000000000 0000000000000000 8500000001000000 b700000000000000 9500000000000000",
    );
    let verified = verified.expect("nothing is wrong with it");
    let call = verified.call(9).expect("a call");
    assert_eq!((call.constant_key, call.non_null), (None, false));
}

/// A key that was shown to exist is what is handed on.
#[test]
fn a_key_that_exists_is_constant() {
    let verified = check(
        "b700000003000000 630af0ff00000000 bfa2000000000000 07020000f0ffffff 1811000000000000 0000000000000000
         8500000001000000 6100000000000000 9500000000000000",
    );
    let verified = verified.expect("the key exists");
    let call = verified.call(6).expect("a call");
    assert_eq!((call.constant_key, call.non_null), (Some(3), true));
}

fn reason(hex: &str) -> String {
    check(hex).expect_err("the kernel refuses it").reason
}

/// One byte of the context's address, from the middle.
#[test]
fn a_part_of_a_spilled_pointer_is_not_a_number() {
    let reason = reason("7b1af8ff00000000 71a0fbff00000000 9500000000000000");
    assert_eq!(reason, "invalid size of register fill");
}

/// `w0 %= w0; if w0 <= 3`: of such a result the kernel knows nothing, so the upper half may be anything.
#[test]
fn a_remainder_is_any_number_of_64_bits() {
    let reason = reason(
        "6110000000000000 9c00000000000000 2600050003000000 1822000001000000 0000000000000000 0f02000000000000
         7120000000000000 b700000000000000 9500000000000000",
    );
    assert!(reason.contains("unbounded"), "{reason}");
}

/// `r0 = be32 r0` of 16 bits: only the upper ones of 32 can be set, so what is at most 91 is 0.
#[test]
fn swapped_bytes_keep_what_is_known_of_bits() {
    let accepted = check(
        "6910000000000000 dc00000020000000 250006005b000000 1822000001000000 0000000000000000 0f02000000000000
         71201f0000000000 0500000000000000 b700000000000000 9500000000000000",
    );
    accepted.expect("byte 31 of 32");
}

/// A store with release order, two bytes off a word.
#[test]
fn ordered_loads_and_stores_are_aligned() {
    let store = "b709000000000000 1824000001000000 0000000000000000 c3941a0010010000 b700000000000000 9500000000000000";
    assert!(reason(store).starts_with("misaligned value access"), "{}", reason(store));
    let load = "1824000001000000 0000000000000000 c3401a0000010000 b700000000000000 9500000000000000";
    assert!(reason(load).starts_with("misaligned value access"), "{}", reason(load));
}

/// Two calls of `bpf_loop` with one turn each. The first callback may leave any number at fp-24; the second reads it, jumps
/// when it is odd, and then reads below the stack. A state in which the second callback had its turn does not cover one in
/// which that is still to come.
#[test]
fn turns_that_are_left_are_explored() {
    let reason = reason(
        "bfa3000000000000 07030000e8ffffff 7a0ae8ff00000000 b701000001000000 184200000c000000 0000000000000000
         b704000000000000 85000000b5000000 bfa3000000000000 07030000e0ffffff 7a0ae0ff00000000 b701000001000000
         1842000004000000 0000000000000000 b704000000000000 85000000b5000000 9500000000000000 bf16000000000000
         bf27000000000000 4706000001000000 0707000013000000 7974f5ff00000000 6b47edff00000000 1d46020000000000
         b700000000000000 9500000000000000 717008fe00000000 b700000000000000 9500000000000000",
    );
    assert!(reason.starts_with("invalid read from stack"), "{reason}");
}
