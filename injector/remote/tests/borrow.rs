//! Threads of real processes are borrowed in every state, and nobody notices.

mod targets;

use beeline_ptrace::{RunState, StopOptions, StoppedProcess, read_status};
use beeline_remote::{Borrowed, Descriptor, FileMapping, Mappings, Process, RemoteError, SystemCall};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use targets::{Target, traced};

/// Waits in one system call (argument) until a byte arrives or a time is over, and prints how the call ended. With `HANDLES` it
/// handles every signal that can be handled and that processes ignore by themselves, and no signal is to come.
const BLOCKED: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static void unexpected(int signal) { _exit(signal); }
int main(int argc, char **argv) {
    if (HANDLES) { signal(SIGURG, unexpected); signal(SIGWINCH, unexpected); }
    puts("ready"); fflush(stdout);
    char c = 0;
    struct timespec half = {0, 400000000};
    long result = -9;
    errno = 0;
    if (!strcmp(KIND, "read")) result = read(0, &c, 1);
    else if (!strcmp(KIND, "nanosleep")) result = nanosleep(&half, 0);
    else if (!strcmp(KIND, "poll")) { struct pollfd p = {0, POLLIN, 0}; result = poll(&p, 1, 20000); }
    else if (!strcmp(KIND, "ppoll")) {
        sigset_t m; sigemptyset(&m); sigaddset(&m, SIGUSR2);
        struct pollfd p = {0, POLLIN, 0};
        result = ppoll(&p, 1, 0, &m);
    }
    else if (!strcmp(KIND, "epoll")) {
        int e = epoll_create1(0); struct epoll_event v = {EPOLLIN};
        epoll_ctl(e, EPOLL_CTL_ADD, 0, &v);
        result = epoll_wait(e, &v, 1, 20000);
    }
    else if (!strcmp(KIND, "futex")) {
        int word = 7; errno = 0;
        result = syscall(SYS_futex, &word, FUTEX_WAIT, 7, &half, 0, 0);
        if (result == -1 && errno == ETIMEDOUT) { result = 110; errno = 0; }
    }
    else if (!strcmp(KIND, "compute")) {
        volatile double a = 1; unsigned long n = 0;
        for (unsigned i = 0; i < 60000000; i++) { a = a * 1.0000001 + 0.5; n = n * 31 + i; if (a > 1e12) a = 1; }
        result = n & 0xff; errno = 0;
    }
    sigset_t now; sigprocmask(0, 0, &now);
    printf("%ld %d %d\n", result, errno, sigismember(&now, SIGUSR2));
    return 0;
}
"#;

/// The program that waits in a call of this kind.
fn blocked(name: &str, kind: &str, handles: bool) -> Option<Target> {
    let source =
        BLOCKED.replace("KIND", &format!("{kind:?}")).replace("HANDLES", if handles { "1" } else { "0" });
    Target::start(&format!("{name}-{handles}"), &source)
}

/// Does it with one that stops for us by a signal, and with one that cannot.
fn both(check: impl Fn(bool)) {
    [false, true].into_iter().for_each(check);
}

/// Borrows the only thread ten times, makes calls, and looks at how the target's own call ends.
fn unharmed(kind: &str, feed: bool, expected: &str) {
    both(|handles| unharmed_by(kind, feed, expected, handles));
}

fn unharmed_by(kind: &str, feed: bool, expected: &str, handles: bool) {
    let Some(mut target) = blocked(&format!("blocked-{kind}"), kind, handles) else { return };
    let pid = target.pid();
    traced(|| {
        for _ in 0..10 {
            let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            let process = Process::open(pid, true).unwrap();
            let before = process.maps().unwrap();
            let mut borrowed = Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, 0).unwrap();
            let found = borrowed.system_call("getpid", libc::SYS_getpid, [0; 6]).unwrap();
            assert_eq!(found, pid as u64);
            let error = borrowed.system_call("close", libc::SYS_close, [9999, 0, 0, 0, 0, 0]).unwrap_err();
            assert!(
                matches!(error, RemoteError::SystemCall { ref source, .. } if source.raw_os_error() == Some(libc::EBADF))
            );
            borrowed.end(&mut stopped).unwrap();
            assert_eq!(process.maps().unwrap(), before);
            stopped.release();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    if feed {
        target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    }
    assert_eq!(target.line(), expected, "{kind}");
    assert!(target.child.wait().unwrap().success());
}

#[test]
fn in_read() {
    unharmed("read", true, "1 0 0");
}

#[test]
fn in_nanosleep() {
    unharmed("nanosleep", false, "0 0 0");
}

#[test]
fn in_poll() {
    unharmed("poll", true, "1 0 0");
}

#[test]
fn in_ppoll() {
    unharmed("ppoll", true, "1 0 0");
}

#[test]
fn in_epoll_wait() {
    unharmed("epoll", true, "1 0 0");
}

#[test]
fn in_futex() {
    unharmed("futex", false, "110 0 0");
}

#[test]
fn in_user_mode() {
    let mut n = 0u64;
    for i in 0..60_000_000u64 {
        n = n.wrapping_mul(31).wrapping_add(i);
    }
    unharmed("compute", false, &format!("{} 0 0", n & 0xff));
}

#[test]
fn a_group_stop_stays() {
    both(group_stop_stays);
}

fn group_stop_stays(handles: bool) {
    let Some(mut target) = blocked("blocked-stopped", "read", handles) else { return };
    let pid = target.pid();
    let kill = |signal| {
        // SAFETY: the target is our child and not collected yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let reach = |state| {
        while read_status(pid).unwrap().state != state {
            std::thread::yield_now();
        }
    };
    kill(libc::SIGSTOP);
    reach(RunState::Stopped);
    for _ in 0..3 {
        traced(|| {
            let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            let process = Process::open(pid, true).unwrap();
            let mut borrowed = Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, 0).unwrap();
            assert_eq!(borrowed.system_call("getpid", libc::SYS_getpid, [0; 6]).unwrap(), pid as u64);
            borrowed.end(&mut stopped).unwrap();
            stopped.release();
        });
        reach(RunState::Stopped);
    }
    kill(libc::SIGCONT);
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "1 0 0");
}

/// Notes which of these signals it has received, until a byte arrives.
const NOTING: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static volatile int noted;
static void note(int signal) { noted |= 1 << signal; }
int main(void) {
    int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    for (int i = 0; i < 6; i++) signal(signals[i], note);
    if (HANDLES) { signal(SIGURG, note); signal(SIGWINCH, note); }
    puts("ready"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) return 1;
    int missing = 0;
    for (int i = 0; i < 6; i++) missing += !(noted & 1 << signals[i]);
    printf("%d missing\n", missing);
    return 0;
}
"#;

/// Those cannot be blocked while a thread is borrowed; whoever sends one is heard afterwards.
#[test]
fn signals_of_instructions_that_somebody_sends() {
    both(|handles| {
        let source = NOTING.replace("HANDLES", if handles { "1" } else { "0" });
        let Some(mut target) = Target::start(&format!("noting-{handles}"), &source) else { return };
        let pid = target.pid();
        traced(|| {
            let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            let process = Process::open(pid, true).unwrap();
            let mut borrowed = Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, 0).unwrap();
            for signal in ["SEGV", "BUS", "ILL", "FPE", "TRAP", "SYS"] {
                let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
                assert!(sent.success());
                let found = borrowed.system_call("getpid", libc::SYS_getpid, [0; 6]).unwrap();
                assert_eq!(found, pid as u64, "{signal}");
            }
            borrowed.end(&mut stopped).unwrap();
            stopped.release();
        });
        target.child.stdin.take().unwrap().write_all(b"x").unwrap();
        assert_eq!(target.line(), "0 missing");
    });
}

#[test]
fn files_and_functions() {
    both(files_and_functions_of);
}

fn files_and_functions_of(handles: bool) {
    let Some(mut target) = blocked("blocked-files", "read", handles) else { return };
    let pid = target.pid();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();
    let mut files: Vec<std::fs::File> = (0..200).map(|_| tempfile()).collect();
    files[199].write_all(&[0x48, 0x8d, 0x04, 0x37, 0xc3]).unwrap(); // lea (%rdi,%rsi),%rax; ret
    files[199].set_len(4096).unwrap();
    traced(|| {
        let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
        let process = Process::open(pid, true).unwrap();
        let maps = process.maps().unwrap();
        let mut borrowed = Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, 0).unwrap();
        let borrowed_files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let address = process.free_range(&maps, 4096, 0x10_0000..0x7000_0000_0000, &[]).unwrap();
        let of_file = |descriptor| {
            let mapping = FileMapping {
                address,
                len: 4096,
                protection: libc::PROT_READ | libc::PROT_EXEC,
                shared: false,
                replace: false,
                descriptor,
                offset: 0,
            };
            SystemCall::map_file("mmap", &mapping)
        };
        // The second mapping finds the first in its place; what comes after it is not done, and no file stays open.
        let twice = |files: &[Descriptor]| {
            let unmap = SystemCall::unmap(address, 4096);
            vec![of_file(files[7]), of_file(files[199]), unmap]
        };
        let error = borrowed.receive(&borrowed_files, twice).unwrap_err();
        assert_eq!(errno(&error), Some(libc::EEXIST), "{error}");
        assert!(process.maps().unwrap().at(address).is_some());
        assert_eq!(descriptors(), before);
        borrowed.make_all(&[SystemCall::unmap(address, 4096)]).unwrap();
        let received = borrowed.receive(&borrowed_files, |files| vec![of_file(files[199])]).unwrap();
        assert_eq!(received.files.len(), files.len());
        assert_eq!(
            descriptors(),
            before + files.len() + 2,
            "the files, and the sockets that they came through"
        );
        assert_eq!(borrowed.call(address, [40, 2, 0, 0]).unwrap(), 42);
        borrowed.close_received(&received).unwrap();
        assert_eq!(descriptors(), before);
        borrowed.make_all(&[SystemCall::unmap(address, 4096)]).unwrap();
        long_list(&mut borrowed, address);
        // A function that faults is our defect, and not the target's end.
        let error = borrowed.call(0x10, [0; 4]).unwrap_err();
        assert!(matches!(error, RemoteError::Interrupted { .. }), "{error}");
        borrowed.end(&mut stopped).unwrap();
        assert_eq!(process.maps().unwrap(), maps);
    });
    assert_eq!(descriptors(), before);
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "1 0 0");
}

/// More calls than go at once, of which one in the middle fails.
fn long_list(borrowed: &mut Borrowed<'_>, address: u64) {
    let map = |index: u64| SystemCall::map_anonymous("mmap of a page", address + 4096 * index, 4096, false);
    let maps = borrowed.process().maps().unwrap();
    let mut calls: Vec<SystemCall> = (0..500).map(map).collect();
    borrowed.make_all(&calls).unwrap();
    borrowed.make_all(&[SystemCall::unmap(address, 500 * 4096)]).unwrap();
    calls[450] = SystemCall::unmap(1, 4096);
    let error = borrowed.make_all(&calls).unwrap_err();
    assert_eq!(errno(&error), Some(libc::EINVAL), "{error}");
    let end = borrowed.process().maps().unwrap().at(address).unwrap().end;
    assert_eq!(end, address + 450 * 4096);
    borrowed.make_all(&[SystemCall::unmap(address, 500 * 4096)]).unwrap();
    assert_eq!(borrowed.process().maps().unwrap(), maps);
}

fn errno(error: &RemoteError) -> Option<i32> {
    match error {
        RemoteError::SystemCall { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

fn tempfile() -> std::fs::File {
    // SAFETY: a plain system call; the new descriptor is owned by nobody else.
    let file = unsafe {
        use std::os::fd::FromRawFd;
        std::fs::File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC))
    };
    file.set_len(4096).unwrap();
    file
}

/// Threads in calls and in user mode that check themselves; says how often at the end.
const BUSY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static volatile int stop;
static void die(const char *why) { perror(why); abort(); }
static void *sleeper(void *a) {
    while (!stop) {
        struct timespec t = {0, 200000};
        if (nanosleep(&t, 0)) die("nanosleep");
        if (poll(0, 0, 1)) die("poll");
    }
    return 0;
}
static unsigned long mix(unsigned long seed) {
    double d = seed; unsigned long n = seed;
    for (int i = 0; i < 20000; i++) { d = d * 1.0000001 + 0.25; n = n * 6364136223846793005ul + (unsigned long)d; }
    return n;
}
static void *computer(void *a) {
    unsigned long expected = mix(42);
    while (!stop) if (mix(42) != expected) die("mix");
    return 0;
}
static void *caller(void *a) {
    int *p = a;
    char c = 'x';
    while (!stop) {
        if (write(p[1], &c, 1) != 1) die("write");
        if (read(p[0], &c, 1) != 1 || c != 'x') die("read");
    }
    return 0;
}
int main(void) {
    pthread_t t[6];
    void *(*f[])(void *) = {sleeper, computer, caller, sleeper, computer, caller};
    static int p[6][2];
    for (int i = 0; i < 6; i++) {
        if (pipe(p[i])) die("pipe");
        pthread_create(&t[i], 0, f[i], p[i]);
    }
    puts("ready"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) die("main read");
    stop = 1;
    for (int i = 0; i < 6; i++) pthread_join(t[i], 0);
    sigset_t now; sigprocmask(0, 0, &now);
    int blocked = 0;
    for (int s = 1; s < 64; s++) blocked += sigismember(&now, s);
    printf("done %d\n", blocked);
    return 0;
}
"#;

#[test]
fn signals_that_it_ignores_keep_coming() {
    const ROUNDS: usize = 100;
    let Some(mut target) = Target::start("signalled", BUSY) else { return };
    let pid = target.pid();
    let over = AtomicBool::new(false);
    let files: Vec<_> = (0..5).map(|_| tempfile()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for signal in [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD] {
                    // SAFETY: the target is our child and not collected yet.
                    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
                }
                std::thread::yield_now();
            }
        });
        let result = std::panic::catch_unwind(|| {
            traced(|| {
                for round in 0..ROUNDS {
                    let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
                    let process = Process::open(pid, true).unwrap();
                    let maps = process.maps().unwrap();
                    let index = round % stopped.threads().len();
                    let mut borrowed = Borrowed::begin(&process, &maps, &mut stopped, index).unwrap();
                    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                    let received = borrowed.receive(&files, |_| Vec::new()).unwrap();
                    assert_eq!(received.files.len(), files.len());
                    borrowed.close_received(&received).unwrap();
                    assert_eq!(borrowed.system_call("getpid", libc::SYS_getpid, [0; 6]).unwrap(), pid as u64);
                    borrowed.end(&mut stopped).unwrap();
                    stopped.release();
                }
            });
        });
        over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "done 0");
    assert!(target.child.wait().unwrap().success());
}

const CHILD: &str = "BEELINE_TEST_TARGET";

/// Not a test of its own: the process that `killed_at_any_moment` kills.
#[test]
fn borrows_in_a_loop() {
    let Ok(pid) = std::env::var(CHILD) else { return };
    let pid: i32 = pid.parse().unwrap();
    let files: Vec<_> = (0..5).map(|_| tempfile()).collect();
    println!("begin");
    std::io::stdout().flush().unwrap();
    for round in 0.. {
        let mut stopped = match StoppedProcess::stop(pid, StopOptions::default()) {
            Ok(stopped) => stopped,
            Err(error) => panic!("{error}"),
        };
        let process = Process::open(pid, true).unwrap();
        let index = round % stopped.threads().len();
        match Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, index) {
            Ok(mut borrowed) => {
                let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                let start = process
                    .free_range(&process.maps().unwrap(), 4096, 0x10_0000..0x1000_0000_0000, &[])
                    .unwrap();
                let map_and_unmap = |files: &[Descriptor]| {
                    let mapping = FileMapping {
                        address: start,
                        len: 4096,
                        protection: libc::PROT_READ,
                        shared: true,
                        replace: false,
                        descriptor: files[4],
                        offset: 0,
                    };
                    vec![SystemCall::map_file("mmap", &mapping), SystemCall::unmap(start, 4096)]
                };
                let received = borrowed.receive(&files, map_and_unmap).unwrap();
                borrowed.close_received(&received).unwrap();
                borrowed.end(&mut stopped).unwrap();
            }
            Err(RemoteError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        stopped.release();
        // The target gets the machine for a moment.
        std::thread::sleep(Duration::from_micros(300));
    }
}

#[test]
fn killed_at_any_moment() {
    let rounds: u64 = std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let Some(mut target) = Target::start("busy", BUSY) else { return };
    let pid = target.pid();
    let descriptors = || {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        entries.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    let process = Process::open(pid, false).unwrap();
    let before = descriptors();
    let maps_before = process.maps().unwrap();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "borrows_in_a_loop", "--nocapture"])
            .env(CHILD, pid.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"begin\n") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "the borrower ended in round {round}");
            text.push(byte[0]);
        }
        // Any moment will do; this spreads them.
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 6000));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(target.child.try_wait().unwrap().is_none(), "the target died in round {round}");
    }
    // A last borrower cleans up after the others.
    traced(|| {
        let mut tries = 0;
        loop {
            let mut stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            let process = Process::open(pid, true).unwrap();
            match Borrowed::begin(&process, &process.maps().unwrap(), &mut stopped, 0) {
                Ok(borrowed) => break borrowed.end(&mut stopped).unwrap(),
                Err(RemoteError::Busy { .. }) if tries < 1000 => tries += 1,
                Err(error) => panic!("{error}"),
            }
            stopped.release();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(descriptors(), before);
    let maps = process.maps().unwrap();
    let shared = |maps: &Mappings| maps.iter().filter(|mapping| mapping.shared).count();
    assert_eq!(shared(&maps), shared(&maps_before));
    let vdso = maps.named("[vdso]").unwrap();
    assert_eq!(process.memory().read_vec(vdso.end - 304, 304).unwrap(), [0; 304]);
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "done 0");
    assert!(target.child.wait().unwrap().success());
    let mut rest = String::new();
    target.output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
