// Panics through ten frames and more, caught, resumed, in threads, with destructors that run code of their own on the way.
//   panic ROUNDS: says what was caught, and how often each function was called
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static DEEP: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static QUIET: AtomicU64 = AtomicU64::new(0);
static DROPS: AtomicU64 = AtomicU64::new(0);

struct Guard(u64);

impl Drop for Guard {
    fn drop(&mut self) {
        DROPS.fetch_add(quiet(self.0) % 2 + 1, Relaxed);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C-unwind" fn quiet(a: u64) -> u64 {
    QUIET.fetch_add(1, Relaxed);
    black_box(a * 3)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C-unwind" fn deep(depth: u64, how: u64) -> u64 {
    DEEP[0].fetch_add(1, Relaxed);
    let guard = Guard(depth);
    let result = if depth > 0 {
        black_box(deep(depth - 1, how)) + guard.0
    } else {
        bottom(how)
    };
    DEEP[1].fetch_add(1, Relaxed);
    result
}

fn bottom(how: u64) -> u64 {
    match how % 4 {
        0 => panic!("bottom {how}"),
        1 => panic_any(how),
        2 => black_box(&[1u64, 2][..])[how as usize],
        _ => 1,
    }
}

fn one(round: u64) -> u64 {
    match catch_unwind(|| deep(10, round)) {
        Ok(sum) => sum,
        Err(payload) => match payload.downcast::<u64>() {
            Ok(number) => *number,
            Err(other) => {
                // Again, through more frames.
                let again = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = Guard(5);
                    resume_unwind(other)
                }));
                again.map_or(1000, |(): ()| 0)
            }
        },
    }
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("rounds");
    std::panic::set_hook(Box::new(|_| {}));
    let work = move || (0..rounds).map(one).sum::<u64>();
    let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(work)).collect();
    let here = work();
    let sums: Vec<u64> = threads.into_iter().map(|thread| thread.join().expect("no panic leaves it")).collect();
    println!("sums {here} {sums:?} drops {}", DROPS.load(Relaxed));
    let failed = std::thread::spawn(|| deep(3, 0)).join();
    println!("thread failed {}", failed.is_err());
    println!("counted deep {} {}", DEEP[0].load(Relaxed), DEEP[1].load(Relaxed));
    println!("counted quiet {0} {0}", QUIET.load(Relaxed));
}
