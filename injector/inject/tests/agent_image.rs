//! The agent's image as it is embedded, and the guard's: what must not be in them, and that the agent runs.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpKind};
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSegment, ObjectSymbol, RelocationFlags, SegmentFlags, elf,
};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// What `src/image.rs` embeds.
static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/agent.so")));

static GUARD: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/guard.so")));

/// The tables in ARCHITECTURE.md.
const GUARD_EXPORTS: [&str; 6] = [
    "beeline_guard_block",
    "beeline_guard_enter",
    "beeline_guard_exit",
    "beeline_guard_missed",
    "beeline_guard_restorer",
    "beeline_guard_trap",
];
const EXPORTS: [&str; 19] = [
    "beeline_call_gate",
    "beeline_claim_cpu",
    "beeline_claim_slot",
    "beeline_guard",
    "beeline_helpers",
    "beeline_init",
    "beeline_libraries_changed",
    "beeline_missed",
    "beeline_own_link",
    "beeline_release_cpu",
    "beeline_return_find",
    "beeline_return_restore",
    "beeline_return_room",
    "beeline_seccomp_go",
    "beeline_seccomp_prctl",
    "beeline_seccomp_syscall",
    "beeline_system_call_enter",
    "beeline_system_call_exit",
    "beeline_system_call_missed",
];

fn image() -> ElfFile64<'static, Endianness> {
    ElfFile64::parse(&IMAGE.0).expect("the image is an ELF file")
}

fn guard() -> ElfFile64<'static, Endianness> {
    ElfFile64::parse(&GUARD.0).expect("the image is an ELF file")
}

#[test]
fn exports_are_the_documented_ones() {
    for (image, documented) in [(image(), &EXPORTS[..]), (guard(), &GUARD_EXPORTS)] {
        let exports: BTreeSet<_> = image.dynamic_symbols().map(|symbol| symbol.name().unwrap()).collect();
        assert_eq!(exports, documented.iter().copied().collect());
        assert!(image.dynamic_symbols().all(|symbol| !symbol.is_undefined()));
        assert!(image.symbols().all(|symbol| !symbol.is_undefined()));
    }
}

/// What of it is mapped is one piece that nobody writes to, but for the address of its block.
#[test]
fn the_guard_has_neither_variables_nor_relocations() {
    let image = guard();
    assert_eq!(image.dynamic_relocations().map_or(0, Iterator::count), 0);
    let variables = image.sections().filter(|section| {
        let name = section.name().unwrap_or_default();
        let object::SectionFlags::Elf { sh_flags, .. } = section.flags() else { panic!("{name}") };
        sh_flags.contains(elf::SHF_WRITE) && ![".dynamic", ".relro_padding"].contains(&name)
    });
    let names: Vec<String> = variables.map(|section| section.name().unwrap().to_owned()).collect();
    assert_eq!(names, Vec::<String>::new());
    let code: u64 = image.segments().map(|segment| segment.size()).sum();
    assert!(code <= 16 << 10, "{code} bytes");
}

#[test]
fn relocations_are_relative() {
    let relocations: Vec<_> = image().dynamic_relocations().expect("relocations").collect();
    assert!(!relocations.is_empty());
    for (offset, relocation) in relocations {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { panic!("{relocation:?}") };
        assert_eq!(r_type, elf::R_X86_64_RELATIVE, "at {offset:#x}");
    }
}

#[test]
fn segments() {
    let image = image();
    let headers = image.elf_program_headers();
    let kinds: Vec<_> = headers.iter().map(|header| header.p_type.get(Endianness::Little)).collect();
    assert!(!kinds.contains(&elf::PT_TLS), "the agent has no thread-local storage");
    assert!(!kinds.contains(&elf::PT_INTERP));
    let dynamic = image.section_by_name(".dynamic").expect("a shared object");
    for entry in dynamic.data().unwrap().as_chunks::<16>().0 {
        let tag = elf::DynamicTag(i64::from_le_bytes(entry[..8].try_into().unwrap()));
        assert_ne!(tag, elf::DT_NEEDED, "it needs no library");
        assert_ne!(tag, elf::DT_TEXTREL);
        assert!(![elf::DT_INIT, elf::DT_INIT_ARRAY, elf::DT_FINI, elf::DT_FINI_ARRAY].contains(&tag));
    }
    for segment in image.segments() {
        let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { panic!() };
        let (writable, executable) = (p_flags.0 & elf::PF_W.0 != 0, p_flags.0 & elf::PF_X.0 != 0);
        assert!(!(writable && executable));
        if executable {
            assert!(segment.size() <= 64 << 10, "{} bytes of code", segment.size());
        }
    }
}

#[test]
fn nothing_can_panic() {
    let (image, guard) = (image(), guard());
    let names: Vec<_> = image.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    assert!(names.len() > 50, "the image has its symbol table");
    let names: Vec<_> =
        names.into_iter().chain(guard.symbols().filter_map(|symbol| symbol.name().ok())).collect();
    // Whatever can panic refers to the handler or to core's functions that call it.
    for sign in [
        "panic",
        "unwind",
        "unwrap_failed",
        "expect_failed",
        "slice_index",
        "slice_end",
        "slice_start",
        "4core3fmt",
    ] {
        let found: Vec<_> = names.iter().filter(|name| name.contains(sign)).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn no_instruction_touches_a_vector_register() {
    for (image, least) in [(image(), 5000), (guard(), 500)] {
        let text = image.section_by_name(".text").unwrap();
        let mut decoder = Decoder::with_ip(64, text.data().unwrap(), text.address(), DecoderOptions::NONE);
        let mut info = InstructionInfoFactory::new();
        let mut count = 0;
        for instruction in &mut decoder {
            check(&mut info, &instruction);
            count += 1;
        }
        assert!(count > least, "{count} instructions");
    }
}

/// Fails for an instruction that changes state which the stubs do not save.
fn check(info: &mut InstructionInfoFactory, instruction: &Instruction) {
    let at = instruction.ip();
    assert_ne!(instruction.code(), Code::INVALID, "at {at:#x}");
    for used in info.info(instruction).used_registers() {
        let register = used.register();
        let state = register.is_vector_register() || register.is_mm() || register.is_st() || register.is_k();
        assert!(!state, "{instruction} at {at:#x}");
    }
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let whole = [
        "fxsave", "fxrstor", "xsave", "xrstor", "ldmxcsr", "stmxcsr", "vzero", "emms", "fninit", "fldcw",
        "popf", "std",
    ];
    assert!(!whole.iter().any(|forbidden| name.starts_with(forbidden)), "{instruction} at {at:#x}");
}

/// The agent calls the kernel's `__vdso_clock_gettime`: nothing that can be reached from there may either.
#[test]
fn the_vdso_clock_touches_no_vector_register() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let Some(line) = maps.lines().find(|line| line.ends_with("[vdso]")) else {
        println!("skipped: no vDSO");
        return;
    };
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
    let mut bytes = vec![0u64; (end - start) as usize / 8];
    let bytes: &mut [u8] = object::pod::bytes_of_slice_mut(&mut bytes);
    std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(bytes, start).unwrap();
    let vdso = ElfFile64::<Endianness>::parse(&*bytes).unwrap();
    let symbol = vdso.dynamic_symbols().find(|symbol| symbol.name() == Ok("__vdso_clock_gettime")).unwrap();
    let mut info = InstructionInfoFactory::new();
    let (mut todo, mut done) = (vec![symbol.address()], BTreeSet::new());
    while let Some(mut at) = todo.pop() {
        while done.insert(at) {
            let mut decoder = Decoder::with_ip(64, &bytes[at as usize..], at, DecoderOptions::NONE);
            let instruction = decoder.decode();
            check(&mut info, &instruction);
            if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
                todo.push(instruction.near_branch_target());
            }
            match instruction.flow_control() {
                FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => break,
                _ => at = instruction.next_ip(),
            }
        }
    }
    assert!(done.len() > 20);
}

/// The image, loaded by this process's dynamic linker.
struct Loaded {
    handle: *mut libc::c_void,
    base: u64,
}

impl Loaded {
    fn new() -> Loaded {
        let path = concat!(env!("OUT_DIR"), "/agent.so\0");
        // SAFETY: the image has no constructors; `info` is filled in before it is read.
        unsafe {
            let handle = libc::dlopen(path.as_ptr().cast(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null());
            let init = libc::dlsym(handle, c"beeline_init".as_ptr());
            let mut info: libc::Dl_info = std::mem::zeroed();
            assert_ne!(libc::dladdr(init, &mut info), 0);
            Loaded { handle, base: info.dli_fbase as u64 }
        }
    }

    /// The address of a local function.
    fn local(&self, name: &str) -> u64 {
        let image = image();
        let symbol = image.symbols().find(|symbol| symbol.name() == Ok(name)).expect("a symbol");
        self.base + symbol.address()
    }

    fn helper(&self, id: usize) -> Option<HelperFn> {
        // SAFETY: the exported table has 212 entries of this form.
        unsafe { *libc::dlsym(self.handle, c"beeline_helpers".as_ptr()).cast::<Option<HelperFn>>().add(id) }
    }
}

type HelperFn = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut beeline_abi::run::RunContext) -> u64;

#[test]
fn the_loaded_image_runs() {
    let loaded = Loaded::new();
    let mut run = beeline_abi::run::RunContext::default();
    run.access.cpu = beeline_abi::run::RunContext::NO_CPU;
    assert!(loaded.helper(0).is_none() && loaded.helper(13).is_none());
    let mut call = |id: usize, [a, b, c]: [u64; 3]| {
        // SAFETY: the arguments are what the helpers take.
        unsafe { loaded.helper(id).expect("a helper")(a, b, c, 0, 0, &mut run) }
    };
    assert_eq!(call(14, [0; 3]) >> 32, u64::from(std::process::id()));
    assert!(call(5, [0; 3]) > 0);
    let mut text = [0u8; 16];
    assert_eq!(call(114, [text.as_mut_ptr() as u64, 16, c"hello".as_ptr() as u64]), 6);
    assert_eq!(&text[..6], b"hello\0");
    assert_eq!(call(112, [text.as_mut_ptr() as u64, 16, 8]) as i64, -beeline_abi::errno::EFAULT);
    let format = c"n=%d\n".to_bytes_with_nul();
    assert_eq!(call(6, [format.as_ptr() as u64, format.len() as u64, 42]), 5);
}

#[test]
fn memory_functions() {
    type Copy = unsafe extern "sysv64" fn(*mut u8, *const u8, usize) -> *mut u8;
    type Fill = unsafe extern "sysv64" fn(*mut u8, i32, usize) -> *mut u8;
    type Compare = unsafe extern "sysv64" fn(*const u8, *const u8, usize) -> i32;
    let loaded = Loaded::new();
    // SAFETY: the symbols are these functions.
    let (copy, shift, fill, compare) = unsafe {
        (
            std::mem::transmute::<u64, Copy>(loaded.local("memcpy")),
            std::mem::transmute::<u64, Copy>(loaded.local("memmove")),
            std::mem::transmute::<u64, Fill>(loaded.local("memset")),
            std::mem::transmute::<u64, Compare>(loaded.local("memcmp")),
        )
    };
    let pattern: Vec<u8> = (0..900u32).map(|i| (i * 31 % 251) as u8).collect();
    for len in (0..40).chain([63, 64, 65, 127, 128, 129, 255, 256, 257, 300]) {
        let mut target = vec![0xee; 700];
        // SAFETY: all within 700 bytes.
        unsafe {
            assert_eq!(copy(target[3..].as_mut_ptr(), pattern[5..].as_ptr(), len), target[3..].as_mut_ptr())
        };
        assert_eq!(target[3..3 + len], pattern[5..5 + len], "memcpy of {len}");
        assert!(target[..3].iter().chain(&target[3 + len..]).all(|&byte| byte == 0xee), "memcpy of {len}");
        for distance in [0isize, 1, 3, 7, 8, 9, 64, 200, -1, -3, -7, -8, -9, -64, -200] {
            let (from, to) = (300usize, (300 + distance) as usize);
            let (mut moved, mut expected) = (pattern.clone(), pattern.clone());
            expected.copy_within(from..from + len, to);
            // SAFETY: as above.
            unsafe { shift(moved.as_mut_ptr().add(to), moved.as_ptr().add(from), len) };
            assert_eq!(moved, expected, "memmove of {len} by {distance}");
        }
        let mut target = vec![0xee; 700];
        // SAFETY: as above.
        unsafe { assert_eq!(fill(target[3..].as_mut_ptr(), 0x1a5, len), target[3..].as_mut_ptr()) };
        assert!(target[3..3 + len].iter().all(|&byte| byte == 0xa5), "memset of {len}");
        assert!(target[..3].iter().chain(&target[3 + len..]).all(|&byte| byte == 0xee), "memset of {len}");
        let mut other = pattern.clone();
        // SAFETY: as above.
        unsafe {
            assert_eq!(compare(pattern.as_ptr(), other.as_ptr(), len), 0);
            if len > 0 {
                other[len - 1] = other[len - 1].wrapping_add(1);
                let (left, right) = (pattern[len - 1], other[len - 1]);
                assert_eq!(
                    compare(pattern.as_ptr(), other.as_ptr(), len).signum(),
                    if left < right { -1 } else { 1 }
                );
            }
        }
    }
}
