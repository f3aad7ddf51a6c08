//! CO-RE on types built by hand: what compilers and kernels at hand do not show.

use beeline_isa::Insn;
use beeline_object::Btf;
use beeline_object::btf::builder::Builder;
use beeline_object::btf::ext::CoreReloRecord;
use beeline_object::btf::{INT_SIGNED, Kind};
use beeline_object::core_relo::patch::{POISON, patch};
use beeline_object::core_relo::{CoReError, Resolution, Resolver};

const BYTE_OFFSET: u32 = 0;
const BYTE_SIZE: u32 = 1;
const EXISTS: u32 = 2;
const SIGNED: u32 = 3;
const LSHIFT: u32 = 4;
const RSHIFT: u32 = 5;
const TYPE_ID_LOCAL: u32 = 6;
const TYPE_ID_TARGET: u32 = 7;
const TYPE_EXISTS: u32 = 8;
const TYPE_SIZE: u32 = 9;
const ENUMVAL_EXISTS: u32 = 10;
const ENUMVAL_VALUE: u32 = 11;
const TYPE_MATCHES: u32 = 12;

const LDX_DW: u8 = 0x79;
const LDX_W: u8 = 0x61;

/// `int`, `unsigned`, `u64`: the first three types of every side.
struct Side {
    b: Builder,
    int: u32,
    unsigned: u32,
    u64: u32,
}

fn side() -> Side {
    let mut b = Builder::new();
    let int = b.int("int", 4, INT_SIGNED);
    let unsigned = b.int("unsigned int", 4, 0);
    let u64 = b.int("u64", 8, 0);
    Side { b, int, unsigned, u64 }
}

impl Side {
    /// A struct of (name, type, byte offset).
    fn record(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let members: Vec<_> = members.iter().map(|&(name, ty, offset)| (name, ty, offset * 8, 0)).collect();
        self.b.composite(Kind::Struct, name, size, &members)
    }

    /// A type whose name is the access string, so that a record can refer to it.
    fn access(&mut self, access: &str) -> u32 {
        self.b.forward(access, false)
    }
}

/// Asks `kind` of type `ty` with the access string that is the name of type `access`.
fn ask(local: &Btf, target: &Btf, ty: u32, access: u32, kind: u32) -> Result<Resolution, CoReError> {
    let access_str_off = local.get(access).expect("the access string").name_offset();
    Resolver::new(local, target).resolve(&CoreReloRecord { insn_off: 0, type_id: ty, access_str_off, kind })
}

fn value(result: Result<Resolution, CoReError>) -> Option<u64> {
    let resolution = result.expect("resolved");
    (!resolution.poison).then_some(resolution.new)
}

#[test]
fn fields_move() {
    let mut l = side();
    let (int, u64) = (l.int, l.u64);
    let local = l.record("s___flavour", 16, &[("a", int, 0), ("b", u64, 8)]);
    let gone = l.record("s___other", 4, &[("gone", int, 0)]);
    let (a, b) = (l.access("0:0"), l.access("0:1"));
    let second = l.access("2:1");
    let local_btf = l.b.finish();
    let mut t = side();
    let (int, u64) = (t.int, t.u64);
    // `b` hides in an anonymous union in an anonymous struct.
    let union = t.b.composite(Kind::Union, "", 8, &[("x", int, 0, 0), ("b", u64, 0, 0)]);
    let inner = t.record("", 24, &[("pad", u64, 0), ("", union, 16)]);
    let id = t.record("s", 40, &[("a", int, 4), ("", inner, 8)]);
    let target = t.b.finish();
    assert_eq!(value(ask(&local_btf, &target, local, a, BYTE_OFFSET)), Some(4));
    assert_eq!(value(ask(&local_btf, &target, local, b, BYTE_OFFSET)), Some(24));
    assert_eq!(value(ask(&local_btf, &target, local, second, BYTE_OFFSET)), Some(2 * 40 + 24));
    assert_eq!(value(ask(&local_btf, &target, local, b, BYTE_SIZE)), Some(8));
    assert_eq!(value(ask(&local_btf, &target, local, b, EXISTS)), Some(1));
    assert_eq!(value(ask(&local_btf, &target, gone, a, EXISTS)), Some(0));
    assert_eq!(value(ask(&local_btf, &target, gone, a, BYTE_OFFSET)), None);
    assert_eq!(value(ask(&local_btf, &target, local, a, SIGNED)), Some(1));
    assert_eq!(value(ask(&local_btf, &target, local, b, SIGNED)), Some(0));
    let mut zero = side();
    let access = zero.access("0");
    let ty = zero.record("s___local", 4, &[]);
    let other = zero.record("nothing", 4, &[]);
    let local_btf = zero.b.finish();
    assert_eq!(value(ask(&local_btf, &target, ty, access, TYPE_ID_LOCAL)), Some(ty.into()));
    assert_eq!(value(ask(&local_btf, &target, ty, access, TYPE_ID_TARGET)), Some(id.into()));
    assert_eq!(value(ask(&local_btf, &target, ty, access, TYPE_SIZE)), Some(40));
    assert_eq!(value(ask(&local_btf, &target, ty, access, TYPE_EXISTS)), Some(1));
    assert_eq!(value(ask(&local_btf, &target, other, access, TYPE_EXISTS)), Some(0));
    assert_eq!(value(ask(&local_btf, &target, other, access, TYPE_SIZE)), Some(0));
}

#[test]
fn candidates_must_agree() {
    let mut l = side();
    let (int, u64) = (l.int, l.u64);
    let local = l.record("s", 12, &[("same", int, 0), ("moved", int, 4), ("wider", u64, 8)]);
    let accesses = [l.access("0:0"), l.access("0:1"), l.access("0:2")];
    let local_btf = l.b.finish();
    let mut t = side();
    let (int, u64) = (t.int, t.u64);
    t.record("s", 16, &[("same", int, 0), ("moved", int, 4), ("wider", int, 8)]);
    t.record("s___2", 24, &[("same", int, 0), ("moved", int, 8), ("wider", u64, 8)]);
    let target = t.b.finish();
    assert_eq!(value(ask(&local_btf, &target, local, accesses[0], BYTE_OFFSET)), Some(0));
    for (access, kind) in [(accesses[1], BYTE_OFFSET), (accesses[2], BYTE_SIZE)] {
        let error = ask(&local_btf, &target, local, access, kind).expect_err("ambiguous");
        assert!(matches!(error, CoReError::Ambiguous { .. }), "{error}");
    }
}

#[test]
fn a_candidate_that_lacks_a_field_is_forgotten() {
    let mut l = side();
    let int = l.int;
    let local = l.record("s", 8, &[("rare", int, 0), ("common", int, 4)]);
    let (rare, common) = (l.access("0:0"), l.access("0:1"));
    let local_btf = l.b.finish();
    let mut t = side();
    let int = t.int;
    t.record("s", 4, &[("common", int, 0)]);
    t.record("s___2", 8, &[("rare", int, 0), ("common", int, 4)]);
    let target = t.b.finish();
    let mut resolver = Resolver::new(&local_btf, &target);
    let mut ask = |access: u32| {
        let access_str_off = local_btf.get(access).expect("type").name_offset();
        resolver.resolve(&CoreReloRecord { insn_off: 0, type_id: local, access_str_off, kind: BYTE_OFFSET })
    };
    assert!(matches!(ask(common), Err(CoReError::Ambiguous { .. })));
    assert_eq!(value(ask(rare)), Some(0));
    // Only the second type matched before: it is the one meant.
    assert_eq!(value(ask(common)), Some(4));
}

#[test]
fn loads_are_resized_only_where_the_value_stays() {
    let pairs = |l: &mut Side| {
        let pointer = l.b.pointer(0);
        let s64 = l.b.int("s64", 8, INT_SIGNED);
        (pointer, s64)
    };
    let mut l = side();
    let (unsigned, u64) = (l.unsigned, l.u64);
    let (pointer, s64) = pairs(&mut l);
    let local = l.record(
        "s",
        32,
        &[("narrower", u64, 0), ("wider", unsigned, 8), ("sign", s64, 16), ("pointer", pointer, 24)],
    );
    let accesses: Vec<_> = (0..4).map(|member| l.access(&format!("0:{member}"))).collect();
    let local_btf = l.b.finish();
    let mut t = side();
    let (int, unsigned, u64) = (t.int, t.unsigned, t.u64);
    let (pointer, _) = pairs(&mut t);
    t.record(
        "s",
        32,
        &[("narrower", unsigned, 0), ("wider", u64, 8), ("sign", int, 16), ("pointer", pointer, 20)],
    );
    let target = t.b.finish();
    let patched = |access: u32, code: u8, off: i16| {
        let resolution = ask(&local_btf, &target, local, access, BYTE_OFFSET).expect("resolved");
        let mut insns = [Insn::new(code, 1, 2, off, 0)];
        patch(&mut insns, 0, &resolution).map(|()| insns[0])
    };
    assert_eq!(patched(accesses[0], LDX_DW, 0), Ok(Insn::new(LDX_W, 1, 2, 0, 0)));
    assert_eq!(patched(accesses[1], LDX_W, 8), Ok(Insn::new(LDX_DW, 1, 2, 8, 0)));
    assert_eq!(patched(accesses[2], LDX_DW, 16), Ok(POISON));
    assert_eq!(patched(accesses[3], LDX_DW, 24), Ok(Insn::new(LDX_DW, 1, 2, 20, 0)));
    // The instruction does not hold what the local types say.
    assert!(patched(accesses[3], LDX_DW, 25).is_err());
    // It reads fewer bytes than the field has: which of them is meant?
    assert!(patched(accesses[1], LDX_DW, 8).is_err());
}

#[test]
fn bitfields() {
    let build = |shift: u32| {
        let mut s = side();
        let (int, unsigned) = (s.int, s.unsigned);
        let members = [("a", unsigned, shift, 3), ("b", int, shift + 3, 5), ("c", unsigned, 33, 30)];
        let id = s.b.composite(Kind::Struct, "s", 16, &members);
        let accesses: Vec<_> = (0..3).map(|member| s.access(&format!("0:{member}"))).collect();
        (s.b.finish(), id, accesses)
    };
    let (local, id, accesses) = build(0);
    let (target, _, _) = build(40);
    let all = |access: u32| {
        [BYTE_OFFSET, BYTE_SIZE, LSHIFT, RSHIFT, SIGNED]
            .map(|kind| value(ask(&local, &target, id, access, kind)))
    };
    // Bits 40 to 42 of the word at byte 4: 64 - (8 + 3) to the left, 64 - 3 to the right.
    assert_eq!(all(accesses[0]), [4, 4, 53, 61, 0].map(Some));
    assert_eq!(all(accesses[1]), [4, 4, 48, 59, 1].map(Some));
    assert_eq!(all(accesses[2]), [4, 4, 33, 34, 0].map(Some));
    let resolution = ask(&local, &target, id, accesses[0], BYTE_OFFSET).expect("resolved");
    assert!(!resolution.validate, "the compiler chooses the word");
}

#[test]
fn arrays() {
    let build = |len: u32, flexible: u32| {
        let mut s = side();
        let (int, u64) = (s.int, s.u64);
        let fixed = s.b.array(u64, int, len);
        let open = s.b.array(u64, int, flexible);
        let id = s.record("s", 8 * len + 8, &[("fixed", fixed, 8), ("open", open, 8 * len + 8)]);
        let accesses = ["0:0:2", "0:1:5", "0:0"].map(|access| s.access(access));
        (s.b.finish(), id, accesses)
    };
    let (local, id, accesses) = build(4, 0);
    let (same, _, _) = build(3, 0);
    let (short, _, _) = build(2, 2);
    assert_eq!(value(ask(&local, &same, id, accesses[0], BYTE_OFFSET)), Some(24));
    assert_eq!(value(ask(&local, &same, id, accesses[1], BYTE_OFFSET)), Some(32 + 40));
    assert_eq!(value(ask(&local, &same, id, accesses[2], BYTE_SIZE)), Some(24));
    assert_eq!(value(ask(&local, &short, id, accesses[0], EXISTS)), Some(0));
    assert_eq!(value(ask(&local, &short, id, accesses[1], EXISTS)), Some(0));
    assert!(ask(&local, &same, id, accesses[0], SIGNED).is_err());
}

#[test]
fn enumerators() {
    let mut l = side();
    let values = [("ONE___flavour", 1), ("TWO", 2), ("THREE", 3)];
    let local = l.b.enumeration("e", 4, false, &values);
    let accesses = ["0", "1", "2", "3", "0:1"].map(|access| l.access(access));
    let local_btf = l.b.finish();
    let mut t = side();
    t.b.enumeration64("e___wide", true, &[("ONE", 1 << 40), ("TWO", -2i64 as u64)]);
    let target = t.b.finish();
    assert_eq!(value(ask(&local_btf, &target, local, accesses[0], ENUMVAL_VALUE)), Some(1 << 40));
    assert_eq!(value(ask(&local_btf, &target, local, accesses[1], ENUMVAL_VALUE)), Some(-2i64 as u64));
    assert_eq!(value(ask(&local_btf, &target, local, accesses[2], ENUMVAL_VALUE)), None);
    assert_eq!(value(ask(&local_btf, &target, local, accesses[2], ENUMVAL_EXISTS)), Some(0));
    assert_eq!(value(ask(&local_btf, &target, local, accesses[1], ENUMVAL_EXISTS)), Some(1));
    assert!(ask(&local_btf, &target, local, accesses[3], ENUMVAL_EXISTS).is_err());
    assert!(ask(&local_btf, &target, local, accesses[4], ENUMVAL_EXISTS).is_err());
    // A 32-bit value of another sign is sign-extended.
    let mut t = side();
    t.b.enumeration("e", 4, false, &[("TWO", -1)]);
    assert_eq!(value(ask(&local_btf, &t.b.finish(), local, accesses[1], ENUMVAL_VALUE)), Some(u64::MAX));
    let resolution = ask(&local_btf, &target, local, accesses[1], ENUMVAL_VALUE).expect("resolved");
    let mut insns = [Insn::new(0x18, 1, 0, 0, 2), Insn::default()];
    patch(&mut insns, 0, &resolution).expect("patched");
    assert_eq!(insns.map(|insn| insn.imm), [-2, -1]);
}

#[test]
fn types_match() {
    // Each side builds type `t`; whether the local one matches the target's.
    type Make = fn(&mut Side) -> u32;
    let structs = |members: &'static [(&'static str, u8)]| {
        move |s: &mut Side| {
            let pick = |s: &Side, ty: u8| [s.int, s.unsigned, s.u64][ty as usize];
            let members: Vec<_> = members
                .iter()
                .enumerate()
                .map(|(at, &(name, ty))| (name, pick(s, ty), 8 * at as u32))
                .collect();
            s.record("t", 64, &members)
        }
    };
    let check = |local: &dyn Fn(&mut Side) -> u32, target: &dyn Fn(&mut Side) -> u32, expected: bool| {
        let mut l = side();
        let id = local(&mut l);
        let access = l.access("0");
        let mut t = side();
        target(&mut t);
        let (local, target) = (l.b.finish(), t.b.finish());
        assert_eq!(value(ask(&local, &target, id, access, TYPE_MATCHES)), Some(expected.into()));
    };
    check(&structs(&[("a", 0)]), &structs(&[("b", 1), ("a", 0)]), true);
    check(&structs(&[("a", 0)]), &structs(&[("a", 1)]), false);
    check(&structs(&[("a", 2)]), &structs(&[("a", 1)]), false);
    check(&structs(&[("a", 0), ("b", 0)]), &structs(&[("a", 0)]), false);
    let pointer_to: fn(&mut Side, u32) -> u32 = |s, to| {
        let pointer = s.b.pointer(to);
        s.record("t", 8, &[("p", pointer, 0)])
    };
    let own: Make = |s| {
        let forward = s.b.forward("other", false);
        let pointer = s.b.pointer(forward);
        s.record("t", 8, &[("p", pointer, 0)])
    };
    let full = move |s: &mut Side| {
        let int = s.int;
        let other = s.record("other", 4, &[("x", int, 0)]);
        pointer_to(s, other)
    };
    let union = move |s: &mut Side| {
        let int = s.int;
        let other = s.b.composite(Kind::Union, "other", 4, &[("x", int, 0, 0)]);
        pointer_to(s, other)
    };
    let renamed = move |s: &mut Side| {
        let other = s.record("renamed", 4, &[]);
        pointer_to(s, other)
    };
    check(&own, &full, true);
    check(&full, &own, true);
    check(&own, &union, false);
    check(&full, &renamed, false);
    let enums =
        |values: &'static [(&'static str, i32)]| move |s: &mut Side| s.b.enumeration("t", 4, false, values);
    check(&enums(&[("A", 1)]), &enums(&[("B", 1), ("A", 7)]), true);
    check(&enums(&[("A", 1), ("C", 2)]), &enums(&[("A", 1), ("B", 2)]), false);
    let functions = |count: usize| {
        move |s: &mut Side| {
            let int = s.int;
            let prototype = s.b.prototype(int, &vec![("x", int); count]);
            let pointer = s.b.pointer(prototype);
            s.b.reference(Kind::Typedef, "t", pointer)
        }
    };
    check(&functions(2), &functions(2), true);
    check(&functions(2), &functions(1), false);
}

#[test]
fn refusals() {
    let mut l = side();
    let int = l.int;
    let local = l.record("s", 4, &[("a", int, 0)]);
    let anonymous = l.record("", 4, &[("a", int, 0)]);
    let accesses = ["0:0", "0:1", "0:0:0", "x", "0:-1"].map(|access| l.access(access));
    let long = l.access(&"0:".repeat(70));
    let local_btf = l.b.finish();
    let ask = |ty, access, kind| ask(&local_btf, &local_btf, ty, access, kind);
    assert_eq!(ask(local, accesses[0], 99), Err(CoReError::UnknownKind(99)));
    assert!(matches!(ask(anonymous, accesses[0], BYTE_OFFSET), Err(CoReError::Anonymous { .. })));
    for access in [accesses[1], accesses[2], accesses[3], accesses[4], long] {
        assert!(matches!(ask(local, access, BYTE_OFFSET), Err(CoReError::Spec { .. })));
    }
    assert!(matches!(ask(999, accesses[0], BYTE_OFFSET), Err(CoReError::Spec { .. })));
    assert!(matches!(ask(local, accesses[0], TYPE_EXISTS), Err(CoReError::Spec { .. })));
    let resolution = ask(local, accesses[0], BYTE_OFFSET).expect("resolved");
    for insn in [Insn::new(0x85, 0, 0, 0, 0), Insn::new(0x0f, 1, 2, 0, 0), Insn::new(0x18, 1, 0, 0, 0)] {
        assert!(patch(&mut [insn], 0, &resolution).is_err(), "{insn:?}");
    }
    assert!(patch(&mut [], 0, &resolution).is_err());
}

#[test]
fn hostile_types_end() {
    // Every level has the next one twice, without a name: 2^60 paths.
    let mut t = side();
    let int = t.int;
    let mut next = t.record("", 0, &[("deep", int, 0)]);
    for _ in 0..60 {
        next = t.record("", 0, &[("", next, 0), ("", next, 0)]);
    }
    t.record("s", 4, &[("", next, 0)]);
    let target = t.b.finish();
    let mut l = side();
    let int = l.int;
    let local = l.record("s", 4, &[("absent", int, 0)]);
    let access = l.access("0:0");
    let local_btf = l.b.finish();
    assert!(matches!(ask(&local_btf, &target, local, access, EXISTS), Err(CoReError::Type { .. })));
    // A struct inside itself.
    let mut t = side();
    let own = t.int + 3;
    assert_eq!(t.record("s", 4, &[("", own, 0)]), own);
    let target = t.b.finish();
    assert!(ask(&local_btf, &target, local, access, EXISTS).is_err());
    // A typedef of itself.
    let mut l = side();
    let alias = l.b.reference(Kind::Typedef, "s", 0);
    l.b.set_pointee(alias, alias);
    let access = l.access("0:0");
    let local_btf = l.b.finish();
    assert!(ask(&local_btf, &target, alias, access, EXISTS).is_err());
}
