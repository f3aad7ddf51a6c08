//! System calls that a stop would end with `EINTR` go on as if nothing had been.

mod targets;

use beeline_ptrace::{StopOptions, StoppedProcess, thread_ids};
use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;
use targets::{Target, traced};

/// A thread for each call, on sockets with a timeout that nothing reaches; what was read from standard input lets all of them
/// go on. What it prints is each call's result, where that is not the right one, and how many there were.
const CALLS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
static char block[4096];
static struct iovec one = {block, 4096}, nine = {block, 9};
static int ends[64], count, wrong;
static const struct timeval patience = {600, 0};
static void patient(int s) {
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}
struct one { const char *name; long expected; int socket, other; long (*call)(struct one *); };
static long c_recvmmsg(struct one *o) { struct mmsghdr m = {.msg_hdr = {.msg_iov = &nine, .msg_iovlen = 1}}; return recvmmsg(o->socket, &m, 1, 0, 0); }
static long c_preadv2(struct one *o) { return preadv2(o->socket, &nine, 1, -1, 0); }
static long c_accept(struct one *o) { return accept(o->socket, 0, 0) < 0 ? -1 : 0; }
static long c_sendto(struct one *o) { return send(o->socket, block, 4096, 0); }
static long c_sendmsg(struct one *o) { struct msghdr m = {.msg_iov = &one, .msg_iovlen = 1}; return sendmsg(o->socket, &m, 0); }
static long c_sendmmsg(struct one *o) { struct mmsghdr m = {.msg_hdr = {.msg_iov = &one, .msg_iovlen = 1}}; return sendmmsg(o->socket, &m, 1, 0); }
static long c_pwritev2(struct one *o) { return pwritev2(o->socket, &one, 1, -1, 0); }
static long c_sendfile(struct one *o) { return sendfile(o->socket, o->other, 0, 4096); }
static long c_splice(struct one *o) { return splice(o->other, 0, o->socket, 0, 4096, 0); }
static long c_connect(struct one *o) {
    struct sockaddr_un u; socklen_t n = sizeof u;
    getsockname(o->other, (void *)&u, &n);
    return connect(o->socket, (void *)&u, n);
}
static long c_io_uring(struct one *o) { return syscall(SYS_io_uring_enter, o->socket, 0, 1, IORING_ENTER_GETEVENTS, 0, 0); }
static void *run(void *a) {
    struct one *o = a;
    long result = o->call(o);
    if (result != o->expected) {
        __atomic_add_fetch(&wrong, 1, 5);
        printf("%s: %ld %d; ", o->name, result, errno);
    }
    return 0;
}
static int listener(void) {
    int l = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un u = {AF_UNIX};
    bind(l, (void *)&u, sizeof(sa_family_t));
    listen(l, 0);
    patient(l);
    return l;
}
static int client(int l, int now) {
    int c = socket(AF_UNIX, SOCK_STREAM, 0);
    struct one o = {"", 0, c, l, 0};
    patient(c);
    if (now) c_connect(&o);
    return c;
}
int main(void) {
    static struct one in[] = {{"recvmmsg", 1, 0, 0, c_recvmmsg}, {"preadv2", 9, 0, 0, c_preadv2}};
    static struct one out[] = {{"sendto", 4096, 0, 0, c_sendto}, {"sendmsg", 4096, 0, 0, c_sendmsg},
        {"sendmmsg", 1, 0, 0, c_sendmmsg}, {"pwritev2", 4096, 0, 0, c_pwritev2}, {"sendfile", 4096, 0, 0, c_sendfile},
        {"splice", 4096, 0, 0, c_splice}};
    pthread_t threads[64];
    for (int i = 0; i < sizeof in / sizeof *in; i++) {
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        patient(s[0]);
        in[i].socket = s[0]; ends[i] = s[1];
        pthread_create(&threads[count++], 0, run, &in[i]);
    }
    int full[16];
    for (int i = 0; i < sizeof out / sizeof *out; i++) {
        int s[2], p[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        patient(s[0]);
        fcntl(s[0], F_SETFL, O_NONBLOCK);
        while (write(s[0], block, 4096) > 0) {}
        fcntl(s[0], F_SETFL, 0);
        full[i] = s[1];
        out[i].socket = s[0];
        if (out[i].call == c_sendfile) { out[i].other = memfd_create("x", 0); if (write(out[i].other, block, 4096) != 4096) return 1; lseek(out[i].other, 0, SEEK_SET); }
        if (out[i].call == c_splice) { if (pipe(p)) return 1; if (write(p[1], block, 4096) != 4096) return 1; out[i].other = p[0]; }
        pthread_create(&threads[count++], 0, run, &out[i]);
    }
    int waits = listener(), busy = listener();
    client(busy, 1);
    struct one accepts = {"accept", 0, waits, 0, c_accept}, connects = {"connect", 0, client(busy, 0), busy, c_connect};
    pthread_create(&threads[count++], 0, run, &accepts);
    pthread_create(&threads[count++], 0, run, &connects);
    struct io_uring_params p = {0};
    int ring = syscall(SYS_io_uring_setup, 8, &p);
    struct one uring = {"io_uring_enter", 0, ring, 0, c_io_uring};
    // Nobody completes anything there: it is left waiting.
    pthread_t left;
    if (ring >= 0) pthread_create(&left, 0, run, &uring);
    puts("ready"); puts(ring >= 0 ? "io_uring" : "none"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) return 1;
    for (int i = 0; i < sizeof in / sizeof *in; i++) if (write(ends[i], block, 9) != 9) return 1;
    client(waits, 1);
    accept(busy, 0, 0);
    for (int i = 0; i < sizeof out / sizeof *out; i++) { fcntl(full[i], F_SETFL, O_NONBLOCK); while (read(full[i], block, 4096) > 0) {} }
    for (int i = 0; i < count; i++) pthread_join(threads[i], 0);
    printf("%d calls, %d wrong\n", count, wrong);
    fflush(stdout);
    _exit(0);
}
"#;

/// The system calls in which threads of the process wait.
fn waiting(pid: i32) -> HashSet<i64> {
    let call = |tid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    thread_ids(pid).unwrap().into_iter().filter_map(call).collect()
}

#[test]
fn calls_on_sockets_with_timeouts_are_made_again() {
    let Some(mut target) = Target::start("interrupted", CALLS) else { return };
    let pid = target.pid();
    let mut expected = HashSet::from([
        libc::SYS_recvmmsg,
        libc::SYS_preadv2,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_pwritev2,
        libc::SYS_sendfile,
        libc::SYS_splice,
        libc::SYS_accept,
        libc::SYS_connect,
    ]);
    if target.line() == "io_uring" {
        expected.insert(libc::SYS_io_uring_enter);
    } else {
        println!("skipped: no io_uring");
    }
    for _ in 0..5 {
        while !waiting(pid).is_superset(&expected) {
            std::thread::sleep(Duration::from_millis(1));
        }
        traced(|| {
            StoppedProcess::stop(pid, StopOptions::default()).unwrap().release();
        });
    }
    while !waiting(pid).is_superset(&expected) {
        std::thread::sleep(Duration::from_millis(1));
    }
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "10 calls, 0 wrong");
}
