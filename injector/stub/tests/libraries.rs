//! Every function of real libraries probed at once, in a process of its own, while the library works.
//!
//! Each case forks: the child plants the probes in its own mappings, works, compares with what it got before, and
//! tells the result by its exit status.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/loaded.rs"]
mod loaded;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_site::find_library;
use harness::{World, in_child, warm_returns};
use loaded::{Loaded, Sites};
use programs::{counter, recorder};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

/// Probes all of `library` in a child with entry and then return links while `work` gives the same as before.
fn check(library: &str, least: usize, load: bool, work: fn(&Symbols) -> Vec<u8>) {
    let Ok(path) = find_library(library) else {
        println!("skipped: no {library}");
        return;
    };
    let symbols = Symbols::open(&path, load);
    let expected = work(&symbols);
    // BEELINE_PROBE_STEP=1 probes everything.
    let step = std::env::var("BEELINE_PROBE_STEP").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let cases = [
        (Sites::Entries, true),
        (Sites::Returns, false),
        (Sites::Returns, true),
        (Sites::Inside { step, first: 3 }, true),
        (Sites::Inside { step, first: 11 }, false),
    ];
    for (sites, heavy) in cases {
        let passed = in_child(|| run_probed(&path, sites, heavy, least, &expected, || work(&symbols)));
        assert!(passed, "{library}, {sites:?}, whole context: {heavy}");
    }
}

/// Plants probes on the library at `path`; true when `work` gives what is expected and the probes were hit.
fn run_probed(
    path: &Path,
    sites: Sites,
    heavy: bool,
    least: usize,
    expected: &[u8],
    work: impl Fn() -> Vec<u8>,
) -> bool {
    let returns = matches!(sites, Sites::Returns);
    let mut world = World::new();
    let record = world.data(32);
    let program = if heavy { recorder(&mut world, record) } else { counter(&mut world, record) };
    let context = if heavy { ContextUse::ALL } else { ContextUse::NONE };
    let mut links = vec![world.link(program, context, returns)];
    if heavy && returns {
        links.push(world.link(program, context, false));
    }
    world.run();
    world.slot();
    warm_returns(&mut world);
    let probed = Loaded::find(path).unwrap().probe_all(&world, &links, sites);
    let same = (0..3).all(|_| work() == expected);
    // SAFETY: the recorder's count.
    let hits = unsafe { *record };
    let missed: u64 = links.iter().map(|l| world.shared(l).missed()).sum();
    println!("{}: {probed} probes ({sites:?}), {hits} hits, {missed} missed, same: {same}", path.display());
    std::mem::forget(world);
    same && probed >= least / 2 && hits > 100
}

/// Functions of a library by name.
struct Symbols(*mut c_void);

impl Symbols {
    fn open(path: &Path, load: bool) -> Symbols {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        if !load {
            return Symbols(libc::RTLD_DEFAULT);
        }
        // SAFETY: a library of the system.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null());
        Symbols(handle)
    }

    fn get(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is open.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null(), "{name:?}");
        found
    }
}

type Digest = unsafe extern "C" fn(*const u8, usize, *mut u8) -> *mut u8;
type Derive = unsafe extern "C" fn(
    *const c_char,
    c_int,
    *const u8,
    c_int,
    c_int,
    *const c_void,
    c_int,
    *mut u8,
) -> c_int;

#[test]
fn libcrypto() {
    check("libcrypto.so.3", 5000, true, |symbols| {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let mut out = vec![0u8; 64 * 5];
        for (i, name) in ["SHA1", "SHA256", "SHA384", "SHA512", "MD5"].into_iter().enumerate() {
            // SAFETY: the declared types are OpenSSL's.
            unsafe {
                let digest: Digest = std::mem::transmute(symbols.get(name));
                digest(data.as_ptr(), data.len(), out.as_mut_ptr().add(64 * i));
            }
        }
        let mut key = [0u8; 64];
        // SAFETY: as above.
        unsafe {
            let md: unsafe extern "C" fn() -> *const c_void = std::mem::transmute(symbols.get("EVP_sha256"));
            let derive: Derive = std::mem::transmute(symbols.get("PKCS5_PBKDF2_HMAC"));
            let done = derive(c"password".as_ptr(), 8, data.as_ptr(), 16, 100, md(), 64, key.as_mut_ptr());
            assert_eq!(done, 1);
        }
        out.extend(key);
        out
    });
}

/// The interpreter's loop is one function with a computed jump at the end of each of its pieces.
#[test]
fn libpython() {
    check("libpython3.11.so.1.0", 1400, true, |symbols| {
        let script = c"
import re, json, collections
def f(n): return n if n < 2 else f(n - 1) + f(n - 2)
class A:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return self.x == o.x
g = (i * i for i in range(100) if i % 3)
assert sum(g) == 215589
assert f(15) == 610 and A(3) == A(3)
try:
    {}['x']
except KeyError as e:
    assert e.args == ('x',)
assert json.loads(json.dumps({'a': [1, 2.5, None, 'x' * 100]}))['a'][1] == 2.5
assert re.sub('(a+)b', r'<\\1>', 'aab ab b') == '<aa> <a> b'
assert collections.Counter('hello world').most_common(1) == [('l', 3)]
assert 3 ** 200 % 1000007 == pow(3, 200, 1000007)
assert sorted(['b', 'a', 'c'], key=lambda s: -ord(s)) == ['c', 'b', 'a']
";
        // SAFETY: the declared types are CPython's; the interpreter is used by one thread.
        unsafe {
            let initialize: unsafe extern "C" fn(c_int) = std::mem::transmute(symbols.get("Py_InitializeEx"));
            let run: unsafe extern "C" fn(*const c_char, *const c_void) -> c_int =
                std::mem::transmute(symbols.get("PyRun_SimpleStringFlags"));
            initialize(0);
            let failed = run(script.as_ptr(), std::ptr::null());
            assert_eq!(failed, 0);
            vec![failed as u8]
        }
    });
}

#[test]
fn libc_itself() {
    check("libc.so.6", 2000, false, |symbols| {
        let mut out = Vec::new();
        let mut text = [0u8; 256];
        for i in 0..50 {
            // SAFETY: the buffer is large enough for the format.
            unsafe {
                libc::snprintf(
                    text.as_mut_ptr().cast(),
                    text.len(),
                    c"%d %08x %s %.17g".as_ptr(),
                    i as c_int,
                    i * 77777 as c_int,
                    c"text".as_ptr(),
                    f64::from(i) / 7.0,
                );
            }
            out.extend(text.iter().take_while(|&&b| b != 0).take(40));
        }
        // SAFETY: plain calls of libc with valid arguments.
        unsafe {
            let mut numbers: Vec<c_int> = (0..1000).map(|i| (i * 7919) % 1009).collect();
            libc::qsort(numbers.as_mut_ptr().cast(), numbers.len(), 4, Some(compare));
            out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            out.extend(libc::strtod(c"3.25e2".as_ptr(), std::ptr::null_mut()).to_le_bytes());
            let sum: unsafe extern "C" fn(*const c_char) -> c_int = std::mem::transmute(symbols.get("atoi"));
            out.extend(sum(c"1234".as_ptr()).to_le_bytes());
            for size in 1..2000usize {
                let block = libc::malloc(size).cast::<u8>();
                libc::memset(block.cast(), size as c_int & 0xff, size);
                let block = libc::realloc(block.cast(), size * 2).cast::<u8>();
                out.push(*block.add(size - 1));
                libc::free(block.cast());
            }
        }
        let threads: Vec<_> =
            (0..4u64).map(|i| std::thread::spawn(move || format!("{i} {:?}", vec![i; 100]).len())).collect();
        out.extend(threads.into_iter().map(|t| t.join().unwrap() as u8));
        let told = std::process::Command::new("/bin/echo").arg("hello").output().unwrap();
        out.extend(told.stdout);
        out
    });
}

unsafe extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
    // SAFETY: qsort passes elements of the array.
    unsafe { (*a.cast::<c_int>()).cmp(&*b.cast::<c_int>()) as c_int }
}
