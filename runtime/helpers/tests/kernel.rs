//! The kernel's answers, call by call: a `BPF_PROG_TYPE_SYSCALL` program makes one helper call on its context, this crate
//! makes the same call on a copy, and result and memory must be equal. Skipped without permission to load programs.

use beeline_abi::run::RunContext;
use beeline_helpers::{by_id, kernel_only};
use std::ffi::CStr;

const CONTEXT_LEN: usize = 256;
/// Where the program leaves r0.
const RESULT: usize = 248;
const TEXT_LEN: usize = 128;

type Context = [u8; CONTEXT_LEN];

/// One argument of a call.
#[derive(Clone, Copy, Debug)]
enum Argument {
    /// A number, or an address of this process.
    Number(u64),
    /// An address in the context.
    Context(u32),
    /// An address in the constant text.
    Text(u32),
}

use Argument::{Context as Ctx, Number, Text};

/// `bpf(2)`: attributes of the commands that are used, zero-padded.
fn bpf(command: u32, attributes: &mut [u64; 16]) -> i64 {
    // SAFETY: the attributes are as long as said; what they point to is alive.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) }
}

fn attributes(words: &[u64]) -> [u64; 16] {
    let mut all = [0; 16];
    all[..words.len()].copy_from_slice(words);
    all
}

/// Two `u32` fields in one word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn instruction(opcode: u8, target: u8, source: u8, offset: i16, immediate: u32) -> [u8; 8] {
    let mut bytes = [opcode, target | source << 4, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..].copy_from_slice(&immediate.to_le_bytes());
    bytes
}

/// A frozen array with the text as its only value.
fn text_map(text: &[u8; TEXT_LEN]) -> i64 {
    const MAP_CREATE: u32 = 0;
    const UPDATE: u32 = 2;
    const FREEZE: u32 = 22;
    const ARRAY: u32 = 2;
    const RDONLY_PROG: u32 = 1 << 7;
    let map =
        bpf(MAP_CREATE, &mut attributes(&[pair(ARRAY, 4), pair(TEXT_LEN as u32, 1), pair(RDONLY_PROG, 0)]));
    if map >= 0 {
        let key = 0u32;
        assert_eq!(
            bpf(UPDATE, &mut attributes(&[map as u64, &raw const key as u64, text.as_ptr() as u64, 0])),
            0
        );
        assert_eq!(bpf(FREEZE, &mut attributes(&[map as u64])), 0);
    }
    map
}

/// Runs the call in the kernel; `None` when programs cannot be loaded here.
fn ask(id: u32, arguments: &[Argument], text: &[u8; TEXT_LEN], context: &mut Context) -> Option<u64> {
    const PROG_LOAD: u32 = 5;
    const TEST_RUN: u32 = 10;
    const SYSCALL: u32 = 31;
    const SLEEPABLE: u32 = 1 << 4;
    const LOAD: u8 = 0x18;
    const MAP_VALUE: u8 = 2;
    let map = text_map(text);
    if map < 0 {
        return None;
    }
    // Helpers take no address of the context itself: it is copied to the stack and back.
    let words = (0..CONTEXT_LEN as i16).step_by(8);
    let on_stack = |offset: i16| offset - CONTEXT_LEN as i16;
    let mut code = vec![instruction(0xbf, 6, 1, 0, 0)];
    for offset in words.clone() {
        code.push(instruction(0x79, 0, 6, offset, 0));
        code.push(instruction(0x7b, 10, 0, on_stack(offset), 0));
    }
    for (register, argument) in (1..).zip(arguments) {
        match *argument {
            Number(number) => {
                code.push(instruction(LOAD, register, 0, 0, number as u32));
                code.push(instruction(0, 0, 0, 0, (number >> 32) as u32));
            }
            Ctx(offset) => {
                code.push(instruction(0xbf, register, 10, 0, 0));
                code.push(instruction(0x07, register, 0, 0, offset.wrapping_sub(CONTEXT_LEN as u32)));
            }
            Text(offset) => {
                code.push(instruction(LOAD, register, MAP_VALUE, 0, map as u32));
                code.push(instruction(0, 0, 0, 0, offset));
            }
        }
    }
    code.push(instruction(0x85, 0, 0, 0, id));
    code.push(instruction(0x7b, 10, 0, on_stack(RESULT as i16), 0));
    for offset in words {
        code.push(instruction(0x79, 0, 10, on_stack(offset), 0));
        code.push(instruction(0x7b, 6, 0, offset, 0));
    }
    code.push(instruction(0xb7, 0, 0, 0, 0));
    code.push(instruction(0x95, 0, 0, 0, 0));
    let mut log = vec![0u8; 64 << 10];
    let mut load = attributes(&[
        pair(SYSCALL, code.len() as u32),
        code.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        pair(1, log.len() as u32),
        log.as_mut_ptr() as u64,
        pair(0, SLEEPABLE),
    ]);
    let program = bpf(PROG_LOAD, &mut load);
    if program < 0 {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EPERM) {
            return None;
        }
        let log = String::from_utf8_lossy(&log);
        // A constant format is looked at before it can run, by the same function.
        if log.contains("Invalid format string") {
            return Some(i64::from(-libc::EINVAL) as u64);
        }
        panic!("helper {id} {arguments:?}: {error}\n{}", log.trim_end_matches('\0'));
    }
    let mut run =
        attributes(&[program as u64, 0, 0, 0, 0, pair(CONTEXT_LEN as u32, 0), context.as_mut_ptr() as u64]);
    assert_eq!(bpf(TEST_RUN, &mut run), 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both are ours.
    unsafe {
        libc::close(program as i32);
        libc::close(map as i32);
    }
    let result = context[RESULT..].try_into().unwrap();
    context[RESULT..].fill(0);
    Some(u64::from_le_bytes(result))
}

/// Makes the call with this crate's helper.
fn call(id: u32, arguments: &[Argument], text: &[u8; TEXT_LEN], context: &mut Context) -> u64 {
    let mut values = [0u64; 5];
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = match *argument {
            Number(number) => number,
            Ctx(offset) => context.as_mut_ptr() as u64 + u64::from(offset),
            Text(offset) => text.as_ptr() as u64 + u64::from(offset),
        };
    }
    let [a, b, c, d, e] = values;
    let mut run = RunContext::default();
    run.access.cpu = RunContext::NO_CPU;
    // SAFETY: the kernel's verifier accepted the same call.
    unsafe { (by_id(id).expect("a helper").call)(a, b, c, d, e, &mut run) }
}

/// A context that begins with these bytes; the rest is recognisable.
fn context(bytes: &[u8]) -> Context {
    let mut context = [0xaa; CONTEXT_LEN];
    context[..bytes.len()].copy_from_slice(bytes);
    context[RESULT..].fill(0);
    context
}

/// Compares; false when the kernel cannot be asked.
fn check(id: u32, arguments: &[Argument], text: &[u8], bytes: &[u8]) -> bool {
    let mut all = [0u8; TEXT_LEN];
    all[..text.len()].copy_from_slice(text);
    let (mut theirs, mut ours) = (context(bytes), context(bytes));
    let Some(expected) = ask(id, arguments, &all, &mut theirs) else {
        println!("skipped: no permission to load eBPF programs");
        return false;
    };
    let found = call(id, arguments, &all, &mut ours);
    let what = || format!("helper {id} {arguments:?} {:?} {:?}", text.escape_ascii().to_string(), bytes);
    assert_eq!(found as i64, expected as i64, "{}", what());
    assert_eq!(ours, theirs, "{}", what());
    true
}

#[test]
fn numbers() {
    let long = [b'0'; 70];
    for text in [
        b"42".as_slice(),
        b" \t-42rest",
        b"0x1F",
        b"0X1f",
        b"0x",
        b"0xg",
        b"017",
        b"019",
        b"8",
        b"9223372036854775807",
        b"9223372036854775808",
        b"-9223372036854775808",
        b"-9223372036854775809",
        b"18446744073709551615",
        b"18446744073709551616",
        b"-99999999999999999999",
        b"ffffffffffffffff",
        b"-0",
        b"-",
        b"--1",
        b"+1",
        b"   ",
        b"1\x002",
        b"\xa01",
        &long,
    ] {
        for flags in [0, 8, 10, 16, 2, 32, 1 << 32 | 10] {
            let arguments = [Ctx(0), Number(text.len() as u64), Number(flags), Ctx(128)];
            if !check(105, &arguments, b"", text) || !check(106, &arguments, b"", text) {
                return;
            }
        }
    }
}

#[test]
fn comparing() {
    for (first, second) in [
        (b"abc\0".as_slice(), b"abc\0".as_slice()),
        (b"abc", b"abcd\0"),
        (b"abc\0x", b"abcd\0"),
        (b"abd", b"abc\0"),
        (b"\xff", b"a\0"),
        (b"a", b"\xff\0"),
        (b"a", b"\0"),
    ] {
        if !check(182, &[Ctx(0), Number(first.len() as u64), Text(0)], second, first) {
            return;
        }
    }
}

#[test]
fn formats() {
    let text = c"hello";
    let minus = -5i64 as u64;
    let cases: &[(&CStr, &[u64])] = &[
        (c"plain 100%%", &[]),
        (c"%d %i %u %x %X", &[minus, 7, minus, 0xbeef, 0xbeef]),
        (c"%ld %lld %lu %llx", &[minus, minus, minus, minus]),
        (c"[%5d] [%-5d] [%05d] [%+d] [% d]", &[42, 42, minus, 42, 42]),
        (c"[%-05d] [%+x] [%0-5d] [%+5d] [%20lld]", &[42, 1, 42, 42, i64::MIN as u64]),
        (c"%c%c|%3c|%-3c|", &[0x61, 0x62, 0x63, 0x64]),
        (c"%px %20px|%-20px|%05px", &[0x1234, 0x1234, 0x1234, 0x1234]),
        (c"%ps %pS %pB", &[0, 0x10, 0x20]),
        (c"%pus, %8pus|%-8pus|", &[text.as_ptr() as u64, text.as_ptr() as u64, text.as_ptr() as u64]),
        (c"<%s> <%pks>", &[0, 8]),
        (c"<%pI4> <%pi6>", &[8, 8]),
        (c"\u{e4}%d\u{e4}", &[1]),
        (c"%", &[1]),
        (c"%d", &[]),
        (c"%d", &[1, 2]),
        (c"%f", &[1]),
        (c"%5", &[1]),
        (c"%.3d", &[1]),
        (c"%#x", &[1]),
        (c"%zu", &[1]),
        (c"%sx", &[1]),
        (c"%pz", &[1]),
        (c"%pI5", &[1]),
        (c"%hd", &[1]),
        (c"%lllu", &[1]),
        (c"%lc", &[1]),
        (c"%5%", &[1]),
        (c"%pksx", &[1]),
        (c"%1$d", &[1]),
        (c"\x01", &[]),
        (c"%s\xc3\xa4", &[1]),
        (c"%d\xff", &[1]),
    ];
    for (format, values) in cases {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        for size in [64, 1, 7] {
            // At most five arguments lie below the output.
            let arguments = [Ctx(64), Number(size), Text(0), Ctx(0), Number(bytes.len() as u64)];
            if !check(165, &arguments, format.to_bytes_with_nul(), &bytes) {
                return;
            }
        }
    }
}

#[test]
fn reading() {
    // A page, a hole behind it.
    // SAFETY: a new mapping, of which the second page is taken away again.
    let page = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let at =
            libc::mmap(std::ptr::null_mut(), 8192, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        libc::munmap(at.add(4096), 4096);
        std::ptr::write_bytes(at.cast::<u8>(), b'x', 4096);
        at as u64
    };
    let text = c"a string of some length".as_ptr() as u64;
    for source in [
        text,
        text + 3,
        page,
        page + 4096 - 8,
        page + 4096 - 7,
        page + 4096,
        0,
        8,
        0x7fff_ffff_f000,
        u64::MAX - 7,
    ] {
        for size in [0, 1, 2, 7, 8, 9, 16, 23, 24, 25, 32, 64] {
            let arguments = [Ctx(8), Number(size), Number(source)];
            for helper in [112, 148, 114] {
                // What follows the string is another literal: only strings are read beyond it.
                let beyond = helper != 114 && source < page && source >= text && source + size > text + 24;
                if !beyond && !check(helper, &arguments, b"", b"") {
                    return;
                }
            }
        }
    }
    // SAFETY: the page is ours.
    unsafe { (page as *mut u8).add(4095).write(0) };
    for distance in 1..20 {
        if !check(114, &[Ctx(8), Number(16), Number(page + 4096 - distance)], b"", b"") {
            return;
        }
    }
}

#[test]
fn who_and_where() {
    let (device, inode) = {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata("/proc/self/ns/pid").unwrap();
        (meta.dev(), meta.ino())
    };
    let initial_namespaces =
        std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.to_str() == Some("pid:[4026531836]"));
    for (helper, arguments) in [
        (14, vec![]),
        (15, vec![]),
        (80, vec![]),
        (16, vec![Ctx(8), Number(1)]),
        (16, vec![Ctx(8), Number(5)]),
        (16, vec![Ctx(8), Number(16)]),
        (16, vec![Ctx(8), Number(24)]),
        (120, vec![Number(device), Number(inode), Ctx(8), Number(8)]),
        (120, vec![Number(device), Number(inode + 1), Ctx(8), Number(8)]),
        (120, vec![Number(device), Number(inode), Ctx(8), Number(12)]),
        (109, vec![Number(0)]),
        (109, vec![Number(65)]),
        (117, vec![Number(0)]),
        (117, vec![Number(65)]),
    ] {
        if helper == 14 && !initial_namespaces {
            continue;
        }
        if !check(helper, &arguments, b"", b"") {
            return;
        }
    }
}

/// Loads a program that only calls helper `id`; the verifier's log.
fn log_of_call(id: u32, prog_type: u32, license: &CStr) -> String {
    const PROG_LOAD: u32 = 5;
    const SYSCALL: u32 = 31;
    const SLEEPABLE: u32 = 1 << 4;
    let code = [instruction(0x85, 0, 0, 0, id), instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];
    let mut log = vec![0u8; 16 << 10];
    let flags = if prog_type == SYSCALL { SLEEPABLE } else { 0 };
    let mut load = attributes(&[
        pair(prog_type, code.len() as u32),
        code.as_ptr() as u64,
        license.as_ptr() as u64,
        pair(2, log.len() as u32),
        log.as_mut_ptr() as u64,
        pair(0, flags),
    ]);
    let program = bpf(PROG_LOAD, &mut load);
    if program >= 0 {
        // SAFETY: ours.
        unsafe { libc::close(program as i32) };
    }
    String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
}

/// The release of the running kernel, as far as it is compared.
fn kernel_release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(['.', '-']).map(|number| number.trim().parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Who may call a helper, and under which licence, is what the kernel says that the table was made after.
#[test]
fn permissions() {
    const MADE_AFTER: (u32, u32) = (6, 18);
    /// Kernels may be built or locked so that nobody may write to user memory.
    const PROBE_WRITE_USER: u32 = 36;
    /// Kernels are mostly built without (`CONFIG_BPF_KPROBE_OVERRIDE`).
    const OVERRIDE_RETURN: u32 = 58;
    const SOCKET_FILTER: u32 = 1;
    const PERF_EVENT: u32 = 7;
    const TYPES: [u32; 9] = [SOCKET_FILTER, 2, 3, 5, 6, PERF_EVENT, 17, 24, 31];
    /// There they take a kernel's object that nobody has here.
    const OF_OBJECTS: [(u32, u32); 2] = [(46, 31), (188, 31)];
    if kernel_release() != MADE_AFTER {
        println!("skipped: this kernel is not {MADE_AFTER:?}");
        return;
    }
    if !log_of_call(5, SOCKET_FILTER, c"GPL").contains("processed") {
        println!("skipped: no permission to load eBPF programs");
        return;
    }
    let left_out = [PROBE_WRITE_USER, OVERRIDE_RETURN];
    let mut wrong = Vec::new();
    let here = beeline_helpers::HELPERS.iter().map(|helper| helper.proto.id);
    let here = here.filter(|id| !left_out.contains(id) && *id < beeline_helpers::KFUNC_BASE);
    for id in here.chain(kernel_only::KERNEL_ONLY.iter().map(|proto| proto.id)) {
        let proto = kernel_only::proto(id, SOCKET_FILTER).expect("a row");
        for prog_type in TYPES.into_iter().filter(|&prog_type| !OF_OBJECTS.contains(&(id, prog_type))) {
            let proto = kernel_only::proto(id, prog_type).expect("a row");
            let log = log_of_call(proto.id, prog_type, c"GPL");
            let refused = log.contains("cannot use helper") || log.contains("unknown func");
            if proto.programs.contains(prog_type) == refused {
                wrong.push(format!("{} in type {prog_type}: {log}", proto.name));
            }
            // There, one helper has a second prototype, which the table leaves out.
            if !refused && prog_type != PERF_EVENT {
                let log = log_of_call(proto.id, prog_type, c"proprietary");
                if proto.gpl_only != log.contains("GPL") {
                    wrong.push(format!("{} in type {prog_type} without GPL: {log}", proto.name));
                }
            }
        }
        assert!(log_of_call(proto.id, SOCKET_FILTER, c"GPL").contains(proto.name), "{}", proto.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
