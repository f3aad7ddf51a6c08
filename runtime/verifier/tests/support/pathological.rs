//! Programs that nobody writes: each wants as much work or memory of a verifier as it can get.

use beeline_abi::map::{MapShape, MapType};
use beeline_isa::Insn;
use beeline_isa::opcode::{
    ADD, ALU64, AND, CALL, DW, EXIT, IMM, JA, JEQ, JGE, JGT, JLT, JMP, JNE, JSET, LD_IMM64, LDX, MEM, MOV,
    PSEUDO_FUNC, PSEUDO_MAP_FD, SRC_REG, ST, STX,
};
use beeline_verifier::{MapInfo, ProgType, Program};

const GET_PRANDOM_U32: i32 = 7;
const MAP_LOOKUP_ELEM: i32 = 1;
const RINGBUF_RESERVE: i32 = 131;
const LOOP: i32 = 181;

/// Bytes of the value of map 0.
const VALUE_BYTES: u32 = 1 << 20;

/// Instructions, one after the other.
#[derive(Default)]
struct Assembly(Vec<Insn>);

impl Assembly {
    fn op(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) -> &mut Assembly {
        self.0.push(Insn::new(code, dst, src, off, imm));
        self
    }

    fn mov(&mut self, dst: u8, imm: i32) -> &mut Assembly {
        self.op(ALU64 | MOV, dst, 0, 0, imm)
    }

    fn copy(&mut self, dst: u8, src: u8) -> &mut Assembly {
        self.op(ALU64 | MOV | SRC_REG, dst, src, 0, 0)
    }

    fn add(&mut self, dst: u8, imm: i32) -> &mut Assembly {
        self.op(ALU64 | ADD, dst, 0, 0, imm)
    }

    fn and(&mut self, dst: u8, imm: i32) -> &mut Assembly {
        self.op(ALU64 | AND, dst, 0, 0, imm)
    }

    fn call(&mut self, helper: i32) -> &mut Assembly {
        self.op(JMP | CALL, 0, 0, 0, helper)
    }

    fn random(&mut self) -> &mut Assembly {
        self.call(GET_PRANDOM_U32)
    }

    fn jump(&mut self, condition: u8, dst: u8, imm: i32, off: i16) -> &mut Assembly {
        self.op(JMP | condition, dst, 0, off, imm)
    }

    fn push(&mut self, src: u8, off: i16) -> &mut Assembly {
        self.op(STX | MEM | DW, 10, src, off, 0)
    }

    fn pop(&mut self, dst: u8, off: i16) -> &mut Assembly {
        self.op(LDX | MEM | DW, dst, 10, off, 0)
    }

    fn wide(&mut self, dst: u8, kind: u8, imm: i32) -> &mut Assembly {
        self.op(LD_IMM64, dst, kind, 0, imm).op(0, 0, 0, 0, 0)
    }

    /// r0 = the value of map 0, or the program ends.
    fn value(&mut self) -> &mut Assembly {
        self.op(ST | MEM | DW, 10, 0, -8, 0)
            .copy(2, 10)
            .add(2, -8)
            .wide(1, PSEUDO_MAP_FD, 0)
            .call(MAP_LOOKUP_ELEM);
        self.jump(JNE, 0, 0, 2).mov(0, 0).exit()
    }

    /// Reads the byte of map 0 at the offset in `reg`, whose range so decides what follows.
    fn read_at(&mut self, reg: u8) -> &mut Assembly {
        self.value().op(ALU64 | ADD | SRC_REG, 0, reg, 0, 0).op(LDX | MEM | 0x10, 0, 0, 0, 0)
    }

    fn exit(&mut self) -> &mut Assembly {
        self.op(JMP | EXIT, 0, 0, 0, 0)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// Distance of a jump that stands here, to `to`.
    fn back(&self, to: usize) -> i16 {
        (to as i64 - self.len() as i64 - 1) as i16
    }

    fn program(&mut self) -> Program {
        let shape = |map_type, key_size, value_size, max_entries| MapShape {
            map_type,
            key_size,
            value_size,
            max_entries,
            map_flags: 0,
            cpus: 2,
        };
        let map = |name: &str, shape| MapInfo { name: name.into(), shape, ..MapInfo::default() };
        Program {
            prog_type: ProgType::KPROBE,
            gpl_compatible: true,
            insns: std::mem::take(&mut self.0),
            maps: vec![
                map("hash", shape(MapType::HASH, 8, VALUE_BYTES, 1)),
                map("ring", shape(MapType::RINGBUF, 0, 0, 4096)),
            ],
            ..Program::default()
        }
    }
}

/// All of them, by name.
pub(crate) fn all() -> Vec<(&'static str, Program)> {
    vec![
        ("two thousand branches that decide nothing", branches(2000, false)),
        ("forty branches that all decide something", branches(40, true)),
        ("a switch of 4096 cases", switch(4096)),
        ("a loop of a million turns", counting(1_000_000, 0)),
        ("a loop that fits, over a full stack", counting(20_000, 60)),
        ("a loop of a million turns over a full stack", counting(1_000_000, 60)),
        ("a loop with two states a turn", counting_branches(4000)),
        ("a loop that copies all of its stack in each turn", copying(20_000)),
        ("a full stack of different numbers, and branches", spills_and_branches(800)),
        ("six frames with full stacks, and branches in the last", deep_frames(1500)),
        ("calls that fan out, eight frames deep", fan_out(7)),
        ("64 subprograms, each called by the one before", chain_of_calls(64)),
        ("200 callbacks, one after the other", callbacks(200)),
        ("callbacks in callbacks, seven deep", nested_callbacks(6)),
        ("a loop that takes a reference in each turn", references(30_000)),
        ("ten thousand branches that wait", waiting(10_000)),
        ("a loop of may_goto with a changing stack", may_goto(50)),
        ("pointers that all have a different offset", pointers(3000)),
    ]
}

/// One branch after the other. With `precise`, which ones were taken decides whether an access is right.
fn branches(count: u32, precise: bool) -> Program {
    let mut code = Assembly::default();
    code.mov(6, 0);
    for bit in 0..count {
        code.random().jump(JSET, 0, 1, 1);
        if precise {
            code.op(ALU64 | ADD, 6, 0, 0, 1 << (bit % 19))
        } else {
            code.op(ALU64 | MOV, 6, 0, 0, bit as i32)
        };
    }
    if precise {
        code.and(6, (VALUE_BYTES - 1) as i32).read_at(6);
    }
    code.mov(0, 0).exit().program()
}

/// Each case leads to the same place with another number, by which memory is accessed.
fn switch(cases: i16) -> Program {
    let mut code = Assembly::default();
    code.random();
    for case in 0..cases {
        // Over the assignment and the jump to the end, whose distance fits 16 bits for this many cases.
        let to_end = 3 * (cases - 1 - case);
        code.jump(JNE, 0, case.into(), 2).mov(6, case.into()).op(JMP | JA, 0, 0, to_end + 1, 0);
    }
    code.mov(6, 0).read_at(6).mov(0, 0).exit().program()
}

/// `for (i = 0; i < turns; i++);` below `slots` spilled numbers.
fn counting(turns: i32, slots: i16) -> Program {
    let mut code = Assembly::default();
    for slot in 0..slots {
        code.random().push(0, -8 * (slot + 1));
    }
    code.mov(6, 0);
    let head = code.len();
    code.add(6, 1);
    let back = code.back(head);
    code.jump(JLT, 6, turns, back);
    for slot in 0..slots {
        code.pop(1, -8 * (slot + 1));
    }
    code.mov(0, 0).exit().program()
}

/// A loop in which one of two counters goes up; both are precise.
fn counting_branches(turns: i32) -> Program {
    let mut code = Assembly::default();
    code.mov(6, 0).mov(7, 0);
    let head = code.len();
    code.random().jump(JSET, 0, 1, 1).add(7, 1).add(6, 1);
    let back = code.back(head);
    code.jump(JLT, 6, turns, back).read_at(7).mov(0, 0).exit().program()
}

/// Moves each of 62 slots to the next one in each turn.
fn copying(turns: i32) -> Program {
    let mut code = Assembly::default();
    for slot in 0..63 {
        code.random().push(0, -8 * (slot + 1));
    }
    code.mov(6, 0);
    let head = code.len();
    for slot in 0..62 {
        code.pop(1, -8 * (slot + 1)).push(1, -8 * (slot + 2));
    }
    code.random().push(0, -8).jump(JSET, 0, 1, 0).add(6, 1);
    let back = code.back(head);
    code.jump(JLT, 6, turns, back);
    for slot in 0..63 {
        code.pop(1, -8 * (slot + 1)).copy(2, 1).jump(JGT, 1, 7, 0);
    }
    code.mov(0, 0).exit().program()
}

/// Numbers of which each has an identity, kept through branches that compare them and narrow all their copies.
fn spills_and_branches(count: i16) -> Program {
    let mut code = Assembly::default();
    for slot in 0..63 {
        code.random().copy(1, 0).push(0, -8 * (slot + 1));
    }
    code.mov(7, 0);
    for branch in 0..count {
        code.pop(1, -8 * (branch % 63 + 1)).jump(JGT, 1, (branch + 1).into(), 1).add(7, 1);
    }
    code.and(7, 0xffff).read_at(7);
    for slot in 1..63 {
        code.pop(1, -8 * (slot + 1));
    }
    code.mov(0, 0).exit().program()
}

/// Six frames, each with a stack of its own full of numbers. (That their sum is too much is found at the end.)
fn deep_frames(count: i16) -> Program {
    let mut code = Assembly::default();
    for frame in 0..6 {
        for slot in 0..63 {
            code.random().push(0, -8 * (slot + 1));
        }
        if frame < 5 {
            // The next function begins behind the loads, the assignment and the exit.
            code.op(JMP | CALL, 0, 1, 0, 63 + 2);
        } else {
            code.mov(7, 0);
            for branch in 0..count {
                code.random().jump(JGT, 0, branch.into(), 1).add(7, 1);
            }
            code.and(7, 0xffff).read_at(7);
        }
        for slot in 0..63 {
            code.pop(1, -8 * (slot + 1));
        }
        code.mov(0, 0).exit();
    }
    code.program()
}

/// Each function but the last calls the next one `times` times.
fn fan_out(times: i32) -> Program {
    let mut code = Assembly::default();
    for frame in 0..8 {
        let body = if frame < 7 { times } else { 0 };
        for call in 0..body {
            code.op(JMP | CALL, 0, 1, 0, body - call + 1);
        }
        code.random().exit();
    }
    // The distance above counts the calls that follow, the assignment and the exit.
    code.program()
}

/// Functions in groups of seven, since more frames are not allowed; the first one calls the first of each group.
fn chain_of_calls(count: i32) -> Program {
    let groups = count.div_euclid(7);
    let mut code = Assembly::default();
    const GROUP_INSNS: i32 = 6 * 5 + 4;
    for group in 0..groups {
        code.op(JMP | CALL, 0, 1, 0, groups - group + 1 + group * GROUP_INSNS);
    }
    code.mov(0, 0).exit();
    for _ in 0..groups {
        for member in 0..7 {
            code.random().jump(JSET, 0, 1, 1).mov(0, 1);
            if member < 6 {
                code.op(JMP | CALL, 0, 1, 0, 1);
            }
            code.exit();
        }
    }
    code.program()
}

/// One `bpf_loop` after the other, each with a callback of its own that counts in the stack of the program.
fn callbacks(count: i32) -> Program {
    const CALL_INSNS: i32 = 7;
    const CALLBACK_INSNS: i32 = 5;
    let mut code = Assembly::default();
    code.op(ST | MEM | DW, 10, 0, -8, 0);
    for call in 0..count {
        code.mov(1, 10);
        let to = (count - call) * CALL_INSNS - 1 + 2 + call * CALLBACK_INSNS - 1;
        code.wide(2, PSEUDO_FUNC, to).copy(3, 10).add(3, -8).mov(4, 0).call(LOOP);
    }
    code.mov(0, 0).exit();
    for _ in 0..count {
        code.op(LDX | MEM | DW, 1, 2, 0, 0).add(1, 1).op(STX | MEM | DW, 2, 1, 0, 0).mov(0, 0).exit();
    }
    code.program()
}

/// A callback that loops over a callback, and so on.
fn nested_callbacks(depth: i32) -> Program {
    let mut code = Assembly::default();
    for level in 0..=depth {
        code.op(ST | MEM | DW, 10, 0, -8, 0);
        if level < depth {
            // The next function begins behind three of these, the call and four more.
            code.mov(1, 100).wide(2, PSEUDO_FUNC, 8).copy(3, 10).add(3, -8).mov(4, 0).call(LOOP);
        }
        code.random().and(0, 1).exit();
    }
    code.program()
}

/// Reserves a record in each turn and never gives one back.
fn references(turns: i32) -> Program {
    let mut code = Assembly::default();
    code.mov(6, 0);
    let head = code.len();
    // The path without a record ends; it waits till the end.
    code.wide(1, PSEUDO_MAP_FD, 1).mov(2, 8).mov(3, 0).call(RINGBUF_RESERVE).jump(JEQ, 0, 0, 2).add(6, 1);
    let back = code.back(head);
    code.jump(JLT, 6, turns, back).mov(0, 0).exit().program()
}

/// Branches whose other side is explored last.
fn waiting(count: i16) -> Program {
    let mut code = Assembly::default();
    code.random();
    for case in 0..count {
        code.jump(JEQ, 0, case.into(), count - 1 - case);
    }
    code.mov(0, 0).exit().program()
}

/// `may_goto` bounds the loop; the stack differs in each turn.
fn may_goto(slots: i16) -> Program {
    const JCOND: u8 = 0xe0;
    let mut code = Assembly::default();
    for slot in 0..slots {
        code.op(ST | MEM | DW, 10, 0, -8 * (slot + 1), 0);
    }
    let body = slots * 3 + 1;
    let head = code.len();
    code.op(JMP | JCOND, 0, 0, body, 0);
    for slot in 0..slots {
        code.pop(1, -8 * (slot + 1)).add(1, i32::from(slot) + 1).push(1, -8 * (slot + 1));
    }
    let back = code.back(head);
    code.op(JMP | JA, 0, 0, back, 0);
    for slot in 0..slots {
        code.pop(1, -8 * (slot + 1)).jump(JGE, 1, 100, 0);
    }
    code.mov(0, 0).exit().program()
}

/// Paths that differ in where a pointer points to.
fn pointers(count: i32) -> Program {
    let mut code = Assembly::default();
    code.value().copy(6, 0);
    for step in 0..count {
        code.random().jump(JSET, 0, 1, 1).add(6, step % 64);
    }
    code.op(LDX | MEM | IMM, 0, 6, 0, 0).mov(0, 0).exit().program()
}
