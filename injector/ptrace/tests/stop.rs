//! Real processes are stopped, looked at and let go.

mod targets;

use beeline_ptrace::{
    Command, Resume, RunState, Running, SpawnError, Stop, StopError, StopOptions, StoppedProcess, Waited,
    read_status, spawn, thread_ids,
};
use std::io::Write;
use std::time::Duration;
use targets::{Target, compile, traced};

/// Threads that sleep, compute, read and wait; prints the sum that each of them reports at the end.
const THREADS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <time.h>
#include <errno.h>
static volatile int stop;
static long failures;
static void *nothing(void *arg) { return arg; }
static void *run(void *arg) {
    long kind = (long)arg % 3;
    unsigned long a = 1;
    while (!stop) {
        if (kind == 0) {
            struct timespec t = {0, 3000000};
            if (nanosleep(&t, 0)) __atomic_add_fetch(&failures, 1, 5);
        } else if (kind == 1) {
            for (int i = 0; i < 10000; i++) a = a * 6364136223846793005ul + 1;
        } else {
            pthread_t t;
            if (pthread_create(&t, 0, nothing, 0)) __atomic_add_fetch(&failures, 1, 5);
            else pthread_join(t, 0);
        }
    }
    return (void *)a;
}
int main(int argc, char **argv) {
    int n = COUNT;
    pthread_t t[64];
    for (long i = 0; i < n; i++) pthread_create(&t[i], 0, run, (void *)i);
    puts("ready"); fflush(stdout);
    char c;
    long got = read(0, &c, 1);
    stop = 1;
    for (int i = 0; i < n; i++) pthread_join(t[i], 0);
    printf("read %ld failures %ld\n", got, failures);
    return 0;
}
"#;

fn many_threads(count: usize) {
    let source = THREADS.replace("COUNT", &count.to_string());
    let Some(mut target) = Target::start(&format!("threads{count}"), &source) else { return };
    let pid = target.pid();
    for _ in 0..20 {
        traced(|| {
            // SAFETY: it has no preconditions.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            let before = policy();
            let stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            assert_eq!(policy(), before, "what stopping wants of the scheduler is over");
            assert!(stopped.threads().len() > count);
            let mut ids: Vec<_> = stopped.threads().iter().map(|thread| thread.tid()).collect();
            let mut all = thread_ids(pid).unwrap();
            ids.sort_unstable();
            all.sort_unstable();
            all.retain(|&tid| read_status(tid).is_ok_and(|status| status.state != RunState::Zombie));
            assert_eq!(ids, all);
            for thread in stopped.threads() {
                assert_eq!(read_status(thread.tid()).unwrap().state, RunState::Traced);
                assert_ne!(thread.registers().unwrap().rip, 0);
            }
            stopped.release();
            assert_eq!(policy(), before);
        });
    }
    assert_eq!(read_status(pid).unwrap().tracer, 0);
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "read 1 failures 0");
    assert!(target.child.wait().unwrap().success());
}

#[test]
fn one_thread() {
    many_threads(0);
}

#[test]
fn fifty_threads() {
    many_threads(50);
}

#[test]
fn dropping_lets_go() {
    let Some(mut target) = Target::start("dropped", &THREADS.replace("COUNT", "0")) else {
        return;
    };
    let pid = target.pid();
    traced(|| {
        let result = std::panic::catch_unwind(|| {
            let _stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            panic!("in the middle");
        });
        assert!(result.is_err());
        assert_eq!(read_status(pid).unwrap().tracer, 0);
    });
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "read 1 failures 0");
}

/// Counts SIGUSR1 and SIGRTMIN; every queued real-time signal has to arrive.
const SIGNALS: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static volatile long count, sum;
static void on(int s, siginfo_t *i, void *u) { count++; sum += i->si_value.sival_int; }
int main(void) {
    struct sigaction a = {.sa_sigaction = on, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN, &a, 0);
    puts("ready"); fflush(stdout);
    while (count < 500) usleep(100);
    printf("%ld\n", sum);
    return 0;
}
"#;

#[test]
fn no_signal_is_lost() {
    let Some(mut target) = Target::start("signals", SIGNALS) else { return };
    let pid = target.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0..500usize {
                let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
                // SAFETY: the target is our child and not collected yet.
                while unsafe { libc::sigqueue(pid, libc::SIGRTMIN(), value) } != 0 {
                    std::thread::yield_now();
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for _ in 0..200 {
                match StoppedProcess::stop(pid, StopOptions::default()) {
                    Ok(stopped) => drop(stopped.release()),
                    // It ends when it has counted them all, and this thread, its tracer, may collect it.
                    Err(
                        StopError::Zombie { .. } | StopError::Died { .. } | StopError::NoSuchProcess { .. },
                    ) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    assert_eq!(target.line(), (0..500).sum::<i32>().to_string());
}

#[test]
fn stopped_targets_stay_stopped() {
    let Some(target) = Target::start("sigstop", SIGNALS) else { return };
    let pid = target.pid();
    let kill = |signal| {
        // SAFETY: the target is our child and not collected yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let reaches = |state| {
        (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            read_status(pid).unwrap().state == state
        })
    };
    kill(libc::SIGSTOP);
    assert!(reaches(RunState::Stopped));
    for _ in 0..5 {
        traced(|| {
            let stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
            assert_eq!(stopped.threads().len(), 1);
            stopped.release();
        });
        assert!(reaches(RunState::Stopped));
    }
    kill(libc::SIGCONT);
    assert!(reaches(RunState::Alive));
}

#[test]
fn refusals_name_the_reason() {
    let error = |pid| traced(move || StoppedProcess::stop(pid, StopOptions::default()).unwrap_err());
    assert!(matches!(error(0x3fff_ffff), StopError::NoSuchProcess { .. }));
    assert!(matches!(error(-1), StopError::NoSuchProcess { .. }));
    assert!(matches!(error(std::process::id() as i32), StopError::Itself { .. }));
    if read_status(2).is_ok_and(|status| status.name == "kthreadd") {
        assert!(matches!(error(2), StopError::KernelThread { .. }));
    } else {
        println!("skipped: no kernel thread in sight");
    }
    let Some(target) = Target::start("traced", SIGNALS) else { return };
    let pid = target.pid();
    traced(|| {
        let _stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
        let text = error(pid).to_string();
        assert!(text.contains(&format!("is being traced by process {}", std::process::id())), "{text}");
    });
    // SAFETY: the target is our child and not collected yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    while read_status(pid).unwrap().state != RunState::Zombie {
        std::thread::yield_now();
    }
    assert!(matches!(error(pid), StopError::Zombie { .. }));
}

#[test]
fn killed_while_stopped() {
    let source = THREADS.replace("COUNT", "8");
    let Some(target) = Target::start("killed", &source) else { return };
    let pid = target.pid();
    traced(|| {
        let stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
        // SAFETY: the target is our child and not collected yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        for thread in stopped.threads() {
            while thread.registers().is_ok() {
                std::thread::yield_now();
            }
        }
        stopped.release();
        let error = StoppedProcess::stop(pid, StopOptions::default()).unwrap_err();
        assert!(
            matches!(
                error,
                StopError::Zombie { .. } | StopError::Died { .. } | StopError::NoSuchProcess { .. }
            ),
            "{error}"
        );
    });
}

#[test]
fn spawned_before_its_first_instruction() {
    let Some(path) = compile(
        "spawned",
        "#include <stdlib.h>\nint main(int c, char **v) { return c + atoi(getenv(\"X\")); }",
    ) else {
        return;
    };
    traced(|| {
        let command = Command {
            path: path.clone(),
            arguments: vec!["a".into(), "b".into()],
            environment: vec![("X".into(), "40".into())],
        };
        let stopped = spawn(&command).unwrap();
        assert_eq!(std::fs::read_link(format!("/proc/{}/exe", stopped.tid())).unwrap(), path);
        let mut running = stopped.resume(Resume::Continue).unwrap();
        loop {
            match running.wait(Duration::from_secs(20)).unwrap() {
                Waited::Stopped(stopped, _) => running = stopped.resume(Resume::Continue).unwrap(),
                Waited::Dead(how) => {
                    assert_eq!(how, beeline_ptrace::Death::Exited(42));
                    break;
                }
            }
        }
        let given_up = spawn(&command).unwrap();
        let pid = given_up.tid();
        drop(given_up);
        // It was killed, and collected unless that took long.
        while read_status(pid).is_ok_and(|status| status.state != RunState::Zombie) {
            std::thread::yield_now();
        }
        let mut status = 0;
        // SAFETY: `status` is a place for one int; the child is ours.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        }
        let error = spawn(&Command { path: "/absent".into(), ..command }).unwrap_err();
        assert!(
            matches!(&error, SpawnError::Exec { source, .. } if source.kind() == std::io::ErrorKind::NotFound),
            "{error}"
        );
    });
}

#[test]
fn system_call_stops_are_told_apart() {
    let Some(target) = Target::start("calls", SIGNALS) else { return };
    let pid = target.pid();
    traced(|| {
        let running = Running::seize(pid).unwrap();
        running.interrupt().unwrap();
        let Waited::Stopped(stopped, stop) = running.wait(Duration::from_secs(5)).unwrap() else { panic!() };
        assert_eq!(stop, Stop::Interrupted { group: None });
        let running = stopped.resume(Resume::ToSyscall).unwrap();
        let Waited::Stopped(stopped, stop) = running.wait(Duration::from_secs(5)).unwrap() else { panic!() };
        assert_eq!(stop, Stop::Syscall);
        stopped.detach().unwrap();
    });
}

/// The main thread waits in `vfork` until a byte comes on standard input; another one runs, and says so at the end.
const VFORK: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *run(void *a) { for (;;) usleep(1000); return a; }
int main(void) {
    pthread_t t;
    pthread_create(&t, 0, run, 0);
    puts("ready"); fflush(stdout);
    char c;
    if (vfork() == 0) { long got = read(0, &c, 1); _exit(got); }
    int status;
    wait(&status);
    printf("child %d\n", WEXITSTATUS(status)); fflush(stdout);
    return read(0, &c, 1);
}
"#;

/// Nobody stands still for a thread that waits in `vfork`.
#[test]
fn a_thread_in_vfork_is_waited_for_while_the_others_run() {
    let Some(mut target) = Target::start("vfork", VFORK) else { return };
    let pid = target.pid();
    while read_status(pid).unwrap().state_letter != 'D' {
        std::thread::sleep(Duration::from_millis(1));
    }
    let other = *thread_ids(pid).unwrap().iter().find(|&&tid| tid != pid).unwrap();
    let options = StopOptions { timeout: Duration::from_millis(300) };
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| StoppedProcess::stop(pid, options).unwrap_err());
        while !stopping.is_finished() {
            assert_ne!(read_status(other).unwrap().state, RunState::Traced);
            std::thread::sleep(Duration::from_millis(1));
        }
        let error = stopping.join().unwrap();
        assert!(matches!(error, StopError::Stuck { tid, state: 'D', .. } if tid == pid), "{error}");
        assert!(error.to_string().contains("vfork"), "{error}");
    });
    let mut input = target.child.stdin.take().unwrap();
    input.write_all(b"x").unwrap();
    assert_eq!(target.line(), "child 1");
    traced(|| {
        let stopped = StoppedProcess::stop(pid, StopOptions::default()).unwrap();
        assert_eq!(stopped.threads().len(), 2);
        stopped.release();
    });
}
