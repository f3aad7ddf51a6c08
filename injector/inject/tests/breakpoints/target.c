/* What breakpoints have to survive. Each command is answered by 0, or by the line at which something went wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* include/uapi/linux/sched.h, which not every C library has. */
struct new_child { unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; };
#define CLEAR_SIGHAND 0x100000000ull

#define NEED(condition) do { if (!(condition)) { int no = 0; __atomic_compare_exchange_n(&bad, &no, __LINE__, 0, 5, 5); } } while (0)

static volatile int stop, bad;
static volatile long handled, with_info;
static long count;
static sigset_t full;
static char alternate[4][65536];

__attribute__((noinline, noclone)) long probed(long a, long b) { __asm__ volatile("" ::: "memory"); return a * 3 + b; }
__attribute__((noinline, noclone)) long outer(long a) { long r = probed(a, 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
/* Jumps to its own second byte: no jump fits at its entry, nor near it. */
long looped(long);
__asm__(".text\n.p2align 4\n.globl looped\n.type looped,@function\nlooped: push %rbx\n1: dec %rdi\njnz 1b\npop %rbx\nmov $7,%eax\nret\n.size looped,.-looped\n");

static void check(void) {
    for (long a = 0; a < 3; a++) NEED(outer(a) == a * 3 + 2);
    NEED(looped(4) == 7);
}

static void on_signal(int signal) { check(); handled++; }
static void on_info(int signal, siginfo_t *info, void *context) {
    sigset_t now;
    check();
    if (info->si_signo == signal && context) with_info++;
    sigprocmask(SIG_BLOCK, &full, &now);
    check();
}

/* Everything by which a signal can be blocked, with probes hit in between. */
static void masks(void) {
    sigset_t old;
    struct sigaction action = { .sa_handler = on_signal, .sa_mask = full };
    NEED(sigaction(SIGUSR1, &action, 0) == 0);
    NEED(pthread_sigmask(SIG_BLOCK, &full, &old) == 0);
    check();
    NEED(pthread_sigmask(SIG_SETMASK, &full, 0) == 0);
    check();
    struct timespec soon = { 0, 1000000 };
    NEED(ppoll(0, 0, &soon, &full) == 0);
    check();
    NEED(pselect(0, 0, 0, 0, &soon, &full) == 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    int events;
    /* A tracer that is killed while it stops us leaves this. */
    do events = epoll_pwait(epoll, &event, 1, 1, &full); while (events == -1 && errno == EINTR);
    NEED(events == 0);
    close(epoll);
    check();
    NEED(pthread_sigmask(SIG_SETMASK, &old, 0) == 0);
    long before = handled;
    NEED(raise(SIGUSR1) == 0 && (handled > before));
    check();
    /* A signal that comes while everything but itself is blocked. */
    sigset_t most = full;
    sigdelset(&most, SIGUSR2);
    NEED(sigaction(SIGUSR2, &action, 0) == 0);
    NEED(pthread_sigmask(SIG_BLOCK, &full, &old) == 0);
    NEED(pthread_kill(pthread_self(), SIGUSR2) == 0);
    NEED(sigsuspend(&most) == -1 && errno == EINTR);
    check();
    NEED(pthread_kill(pthread_self(), SIGUSR2) == 0);
    NEED(ppoll(0, 0, 0, &most) == -1 && errno == EINTR);
    NEED(pthread_sigmask(SIG_SETMASK, &old, 0) == 0);
}

static long raw(long number, long a, long b, long c, long d, long *second) {
    register long r10 __asm__("r10") = d;
    long result = number, si = b;
    __asm__ volatile("syscall" : "+a"(result), "+S"(si) : "D"(a), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    *second = si;
    return result;
}

/* Errors and registers are the kernel's. */
static void errors(void) {
    long si;
    NEED(raw(SYS_rt_sigprocmask, SIG_BLOCK, (long)&full, 0, 8, &si) == 0 && si == (long)&full);
    check();
    NEED(raw(SYS_rt_sigprocmask, SIG_BLOCK, 8, 0, 8, &si) == -EFAULT && si == 8);
    NEED(raw(SYS_rt_sigprocmask, SIG_BLOCK, (long)&full, 0, 16, &si) == -EINVAL);
    NEED(raw(SYS_rt_sigprocmask, 77, (long)&full, 0, 8, &si) == -EINVAL && si == (long)&full);
    sigset_t none;
    sigemptyset(&none);
    NEED(sigprocmask(SIG_SETMASK, &none, 0) == 0);
    NEED(raw(SYS_rt_sigaction, SIGTRAP, 8, 0, 8, &si) == -EFAULT);
    NEED(raw(SYS_rt_sigaction, SIGTRAP, 0, 8, 8, &si) == -EFAULT);
    NEED(raw(SYS_rt_sigaction, SIGTRAP, 0, 0, 4, &si) == -EINVAL);
    NEED(raw(SYS_rt_sigaction, 65, 0, 0, 8, &si) == -EINVAL);
    NEED(ppoll(0, 0, 0, (sigset_t *)8) == -1 && errno == EFAULT);
    check();
}

static int ends_by(void (*child)(void)) {
    pid_t pid = fork();
    if (pid == 0) { child(); _exit(3); }
    int status = 0;
    NEED(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}
static void by_raise(void) { check(); signal(SIGTRAP, SIG_DFL); check(); raise(SIGTRAP); }
static void by_int3(void) { signal(SIGTRAP, SIG_IGN); check(); raise(SIGTRAP); check(); __asm__ volatile("int3"); }
static void survives(void) { check(); signal(SIGTRAP, SIG_IGN); raise(SIGTRAP); check(); masks(); _exit(bad ? 1 : 0); }

static jmp_buf place;
static void on_jump(int signal) { siglongjmp(place, 1); }

/* The process's own use of the signal. */
static void actions(void) {
    struct sigaction old, action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGTRAP);
    sigaddset(&action.sa_mask, SIGUSR1);
    NEED(sigaction(SIGTRAP, &action, 0) == 0);
    NEED(sigaction(SIGTRAP, 0, &old) == 0 && old.sa_handler == on_signal && (old.sa_flags & SA_RESTART));
    NEED(sigismember(&old.sa_mask, SIGTRAP) == 1 && sigismember(&old.sa_mask, SIGHUP) == 0);
    check();
    handled = 0;
    NEED(raise(SIGTRAP) == 0 && handled == 1);
    __asm__ volatile("int3");
    NEED(handled == 2);
    action.sa_sigaction = on_info;
    action.sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER;
    NEED(sigaction(SIGTRAP, &action, &old) == 0 && old.sa_handler == on_signal);
    with_info = 0;
    NEED(raise(SIGTRAP) == 0 && with_info == 1);
    NEED(sigaction(SIGTRAP, 0, &old) == 0 && old.sa_handler == SIG_DFL);
    sigset_t now;
    NEED(sigprocmask(SIG_SETMASK, 0, &now) == 0 && sigismember(&now, SIGUSR1) == 0);
    check();
    NEED(signal(SIGTRAP, on_jump) == SIG_DFL);
    for (volatile int i = 0; i < 5; i++) {
        if (sigsetjmp(place, 1) == 0) { raise(SIGTRAP); NEED(0); }
        check();
    }
    NEED(signal(SIGTRAP, SIG_IGN) == on_jump);
    NEED(raise(SIGTRAP) == 0);
    check();
    NEED(signal(SIGTRAP, SIG_DFL) == SIG_IGN);
    NEED(ends_by(by_raise) == SIGTRAP && ends_by(by_int3) == SIGTRAP && ends_by(survives) == 0);
    NEED(sigaction(SIGTRAP, 0, &old) == 0 && old.sa_handler == SIG_DFL);
}

static void *on_other_stack(void *unused) {
    stack_t stack = { .ss_sp = alternate[(long)unused], .ss_size = sizeof alternate[0] }, none = { .ss_flags = SS_DISABLE };
    NEED(sigaltstack(&stack, 0) == 0);
    masks();
    check();
    NEED(sigaltstack(&none, 0) == 0);
    return 0;
}

/* Children of all kinds, on their own memory and on ours. */
static void children(void) {
    extern char **environ;
    struct sigaction old;
    NEED(signal(SIGTRAP, on_signal) == SIG_DFL);
    NEED(ends_by(survives) == 0);
    char *arguments[] = { "true", 0 };
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &full);
    posix_spawnattr_setsigmask(&attributes, &full);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    pid_t pid;
    int status = 1;
    NEED(posix_spawn(&pid, "/bin/true", 0, &attributes, arguments, environ) == 0);
    NEED(waitpid(pid, &status, 0) == pid && status == 0);
    pid = vfork();
    if (pid == 0) { check(); signal(SIGTRAP, SIG_DFL); check(); _exit(0); }
    NEED(waitpid(pid, &status, 0) == pid && status == 0);
    /* What a child on our memory wanted is not ours. */
    NEED(sigaction(SIGTRAP, 0, &old) == 0 && old.sa_handler == on_signal);
    struct new_child clear = { .flags = CLEAR_SIGHAND, .exit_signal = SIGCHLD };
    pid = syscall(435, &clear, sizeof clear);
    if (pid == 0) { check(); _exit(sigaction(SIGTRAP, 0, &old) || old.sa_handler != SIG_DFL || bad); }
    NEED(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    pthread_t thread;
    for (long i = 0; i < 4; i++) {
        NEED(pthread_create(&thread, 0, on_other_stack, (void *)i) == 0);
        pthread_join(thread, 0);
    }
    NEED(system("true") == 0);
    NEED(signal(SIGTRAP, SIG_DFL) == on_signal);
}

static void *some(void *unused) { for (long i = 0; i < count; i++) check(); return 0; }
static void *run(void *unused) { while (!stop) { check(); masks(); } return 0; }
static void *hits(void *unused) { while (!stop) check(); return 0; }

static void *waits(void *unused) {
    sigset_t old;
    pthread_sigmask(SIG_BLOCK, &full, &old);
    while (!stop) ppoll(0, 0, &(struct timespec){ 0, 200000000 }, &full);
    check();
    pthread_sigmask(SIG_SETMASK, &old, 0);
    return 0;
}

int main(void) {
    char line[100];
    pthread_t threads[3];
    setvbuf(stdin, 0, _IONBF, 0);
    sigfillset(&full);
    printf("ready\n"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "masks")) masks();
        else if (!strcmp(line, "errors")) errors();
        else if (!strcmp(line, "actions")) actions();
        else if (!strcmp(line, "children")) children();
        else if (!strcmp(line, "ignore")) NEED(signal(SIGTRAP, SIG_IGN) != SIG_ERR);
        else if (!strcmp(line, "ignored")) { NEED(signal(SIGTRAP, SIG_IGN) == SIG_IGN); NEED(raise(SIGTRAP) == 0); }
        else if (!strcmp(line, "block")) pthread_sigmask(SIG_BLOCK, &full, 0);
        else if (!strcmp(line, "unblock")) pthread_sigmask(SIG_UNBLOCK, &full, 0);
        else if (!strcmp(line, "run") || !strcmp(line, "hit") || !strcmp(line, "wait")) {
            stop = 0;
            void *(*what)(void *) = *line == 'r' ? run : *line == 'h' ? hits : waits;
            for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, what, 0);
        } else if (!strcmp(line, "stop")) {
            stop = 1;
            for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
        } else {
            count = atol(line);
            for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, some, 0);
            for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
        }
        printf("%d\n", bad); fflush(stdout);
    }
    return 0;
}
