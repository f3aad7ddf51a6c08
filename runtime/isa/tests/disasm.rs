//! The text of instructions equals the kernel's.

use beeline_isa::Insn;
use beeline_isa::disasm::{Line, Names, NoNames};
use std::fmt::Write;

/// Instructions from hexadecimal digits.
fn insns(hex: &str) -> Vec<Insn> {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal digits"))
        .collect();
    bytes.as_chunks::<8>().0.iter().map(|&slot| Insn::from_bytes(slot)).collect()
}

fn text(hex: &str, names: &dyn Names) -> String {
    Line::new(&insns(hex), 0, names).to_string()
}

/// The names that the file's calls need.
struct KernelNames;

impl Names for KernelNames {
    fn helper(&self, id: i32) -> Option<&str> {
        match id {
            5 => Some("bpf_ktime_get_ns"),
            7 => Some("bpf_get_prandom_u32"),
            _ => None,
        }
    }
}

#[test]
fn as_the_kernel_prints_it() {
    let lines: Vec<&str> = include_str!("disasm.txt").lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() > 150, "the file holds one line for each kind of instruction");
    for line in lines {
        let (hex, expected) = line.split_once(" = ").expect("hex = text");
        assert_eq!(text(hex, &KernelNames), expected, "{hex}");
    }
}

#[test]
fn references() {
    struct Some7;
    impl Names for Some7 {
        fn function(&self, start: u32) -> Option<&str> {
            (start == 3).then_some("callback")
        }
        fn map(&self, index: u32, out: &mut dyn Write) -> std::fmt::Result {
            write!(out, "map[id:{}]", index + 7)
        }
    }
    let check = |hex, names: &dyn Names, expected| assert_eq!(text(hex, names), expected);
    let map = "18110000000000000000000000000000";
    check(map, &NoNames, "(18) r1 = map[idx:0]");
    check(map, &Some7, "(18) r1 = map[id:7]");
    check("18210000000000000000000010000000", &Some7, "(18) r1 = map[id:7][0]+16");
    let function = "18420000020000000000000000000000";
    check(function, &Some7, "(18) r2 = subprog[+2]#callback");
    check(function, &NoNames, "(18) r2 = subprog[+2]");
    check("8510000002000000", &Some7, "(85) call pc+2#callback");
    check("85100000fcffffff", &Some7, "(85) call pc-4");
    check("8500000063000000", &NoNames, "(85) call unknown#99");
    check("2000000010000000", &NoNames, "(20) r0 = *(u32 *)skb[16]");
    check("4810000002000000", &NoNames, "(48) r0 = *(u16 *)skb[r1 + 2]");
}

#[test]
fn what_is_no_instruction() {
    assert_eq!(text("ff00000000000000", &NoNames), "(ff) BUG_ff");
    // A wide immediate without its second half.
    assert_eq!(text("1801000001000000", &NoNames), "(18) BUG_18");
    assert_eq!(Line::new(&[], 3, &NoNames).to_string(), "(end of program)");
}
