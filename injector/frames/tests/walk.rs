//! The walk of the agent's helpers by these tables, in this very process, against libgcc's unwinder.

use beeline_abi::process::{ForkPage, ProcessBlock};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::unwind::{UnwindRow, UnwindText};
use beeline_frames::Rows;
use beeline_helpers::stack;
use beeline_site::Binary;
use std::arch::asm;
use std::cell::RefCell;
use std::ffi::c_void;

/// The tables of this process, and a block that names them.
struct World {
    block: Box<ProcessBlock>,
    _fork_page: Box<ForkPage>,
    _texts: Vec<UnwindText>,
    _rows: Vec<Vec<UnwindRow>>,
}

fn world() -> World {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let (mut texts, mut rows) = (Vec::new(), Vec::new());
    for line in maps.lines().filter(|line| line.contains("r-xp") && line.contains('/')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end, offset) = (hex(start), hex(end), hex(words[2]));
        let binary = Binary::open(words[5]).unwrap();
        let found = Rows::of(&binary);
        texts.push(UnwindText {
            start,
            end,
            base: found.base_in(&binary, start, offset, end - start).unwrap(),
            rows: found.rows.as_ptr() as u64,
            row_count: found.rows.len() as u32,
            ..UnwindText::default()
        });
        rows.push(found.rows);
    }
    // SAFETY: all zero is a value of each field.
    let (mut block, fork_page) = unsafe {
        let block: Box<ProcessBlock> = Box::new(std::mem::zeroed());
        (block, Box::new(std::mem::zeroed::<ForkPage>()))
    };
    block.texts = texts.as_ptr() as u64;
    block.text_count = texts.len() as u32;
    block.fork_page = &raw const *fork_page as u64;
    World { block, _fork_page: fork_page, _texts: texts, _rows: rows }
}

thread_local! {
    static WORLD: World = world();
    /// Both walks, from the caller of [`look`] on.
    static SEEN: RefCell<Option<(Vec<u64>, Vec<u64>)>> = const { RefCell::new(None) };
}

const DEPTH: usize = 100;

/// Walks the stack both ways.
#[inline(never)]
extern "C" fn look() {
    let mut regs = PtRegs::default();
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "lea {ip}, [rip]",
            "mov {sp}, rsp",
            "mov {bp}, rbp",
            "mov {out}, rbx",
            ip = out(reg) regs.ip,
            sp = out(reg) regs.sp,
            bp = out(reg) regs.bp,
            out = out(reg) regs.bx,
        );
    }
    let mut ours = vec![0u64; DEPTH];
    let mut theirs = vec![std::ptr::null_mut::<c_void>(); DEPTH];
    WORLD.with(|world| {
        let mut run = RunContext { process: &raw const *world.block as u64, ..RunContext::default() };
        // SAFETY: as many words as is said.
        unsafe {
            let count = stack::walk(&mut run, &regs, ours.as_mut_ptr(), DEPTH);
            ours.truncate(count);
        }
    });
    // SAFETY: as many words as is said.
    let count = unsafe { libc::backtrace(theirs.as_mut_ptr(), DEPTH as i32) };
    theirs.truncate(count as usize);
    let theirs: Vec<u64> = theirs.into_iter().map(|it| it as u64).collect();
    SEEN.with(|seen| *seen.borrow_mut() = Some((ours[1..].to_vec(), theirs[1..].to_vec())));
}

/// What both saw; they must agree to the end.
fn agreed() -> Vec<u64> {
    let (ours, theirs) = SEEN.with(|seen| seen.borrow_mut().take()).expect("it was reached");
    assert_eq!(ours, theirs, "ours and libgcc's");
    assert!(ours.len() > 5, "{ours:x?}");
    ours
}

/// A frame of another size at each depth.
#[inline(never)]
fn deep<const N: usize>(depth: usize, then: fn()) -> usize {
    let mut space = [depth; N];
    std::hint::black_box(&mut space);
    if depth == 0 {
        then();
    } else {
        space[N / 2] += deep::<N>(depth - 1, then);
    }
    std::hint::black_box(&space).iter().sum()
}

#[test]
fn frames_of_many_sizes() {
    deep::<1>(3, || look());
    let one = agreed().len();
    deep::<300>(20, || {
        deep::<7>(5, || look());
    });
    assert!(agreed().len() > one + 20);
}

extern "C" fn compare(_: *const c_void, _: *const c_void) -> i32 {
    deep::<3>(2, || look());
    0
}

#[test]
fn through_libc() {
    let mut items = [3u64, 1];
    // SAFETY: two items of eight bytes.
    unsafe { libc::qsort(items.as_mut_ptr().cast(), 2, 8, Some(compare)) };
    agreed();
}

extern "C" fn on_signal(_: i32) {
    look();
}

#[test]
fn through_a_signal() {
    // SAFETY: the handler allocates, which this thread is not in the middle of.
    unsafe {
        libc::signal(libc::SIGUSR1, on_signal as *const () as usize);
        deep::<5>(3, || {
            libc::raise(libc::SIGUSR1);
        });
    }
    agreed();
}

#[test]
fn on_a_thread_of_its_own() {
    std::thread::spawn(|| {
        deep::<2>(4, || look());
        agreed();
    })
    .join()
    .unwrap();
}
