//! What `/proc/PID/status` and `stat` say of a process.

use crate::Tid;
use std::fs;
use std::io::{self, Read};

/// The state letter of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// Running, sleeping or waiting: R, S, D, I, P.
    Alive,
    /// Stopped by a signal: T.
    Stopped,
    /// Stopped by a tracer: t.
    Traced,
    /// Dead, but not waited for: Z or X.
    Zombie,
}

/// A process's status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Name, at most 15 bytes.
    pub name: String,
    /// State of this task.
    pub state: RunState,
    /// The state letter as the kernel prints it.
    pub state_letter: char,
    /// Process (thread group) that the task belongs to.
    pub tgid: Tid,
    /// Parent process.
    pub ppid: Tid,
    /// The process that traces this task, 0 = none.
    pub tracer: Tid,
    /// Real, effective, saved and file-system user id.
    pub uids: [u32; 4],
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Effective capabilities.
    pub capabilities: u64,
    /// Process and thread by their ids in their own pid namespace; none where the kernel does not tell (before 4.1).
    pub ids_inside: Option<[Tid; 2]>,
    /// Signals that the process handles, bit n - 1 for signal n.
    pub caught: u64,
    /// Signals that this task blocks: in a call like `ppoll`, those that it blocks meanwhile.
    pub blocked: u64,
    /// Signals for this task alone that are still to be delivered.
    pub pending: u64,
    /// `VmSize` is there: the task has an address space of its own. A kernel thread and a zombie have none.
    pub has_memory: bool,
}

/// Reads the status of the process or thread `tid`.
///
/// # Errors
/// `NotFound` when there is no such task; whatever reading `/proc` gives otherwise.
pub fn read_status(tid: Tid) -> io::Result<Status> {
    let text = read_whole(&format!("/proc/{tid}/status")).map_err(absent)?;
    Ok(parse_status(&String::from_utf8_lossy(&text)))
}

/// A short file of `/proc`, mostly by one read: it has no length that `std` could go by.
fn read_whole(path: &str) -> io::Result<Vec<u8>> {
    const LEN: usize = 8192;
    let mut file = fs::File::open(path)?;
    let mut text = vec![0; LEN];
    let len = file.read(&mut text)?;
    text.truncate(len);
    if len == LEN {
        file.read_to_end(&mut text)?;
    }
    Ok(text)
}

/// A task that goes between opening and reading a file of its `/proc` gives `ESRCH` where `ENOENT` is what it means.
fn absent(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
        _ => error,
    }
}

fn parse_status(text: &str) -> Status {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim)
    };
    let mut uids = field("Uid").split_whitespace().map(|word| word.parse().unwrap_or(u32::MAX));
    // One in each namespace, the innermost last.
    let inside = |name: &str| field(name).split_whitespace().last()?.parse().ok();
    let state_letter = field("State").chars().next().unwrap_or('?');
    Status {
        name: field("Name").to_owned(),
        state: match state_letter {
            'T' => RunState::Stopped,
            't' => RunState::Traced,
            'Z' | 'X' => RunState::Zombie,
            _ => RunState::Alive,
        },
        state_letter,
        tgid: field("Tgid").parse().unwrap_or(0),
        ppid: field("PPid").parse().unwrap_or(0),
        tracer: field("TracerPid").parse().unwrap_or(0),
        uids: std::array::from_fn(|_| uids.next().unwrap_or(u32::MAX)),
        seccomp: field("Seccomp").parse().unwrap_or(0),
        capabilities: u64::from_str_radix(field("CapEff"), 16).unwrap_or(0),
        ids_inside: inside("NStgid").zip(inside("NSpid")).map(|(tgid, pid)| [tgid, pid]),
        caught: u64::from_str_radix(field("SigCgt"), 16).unwrap_or(u64::MAX),
        blocked: u64::from_str_radix(field("SigBlk"), 16).unwrap_or(u64::MAX),
        pending: u64::from_str_radix(field("SigPnd"), 16).unwrap_or(0),
        has_memory: !field("VmSize").is_empty(),
    }
}

/// The ids of all threads of process `pid`, in the order in which the kernel lists them.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn thread_ids(pid: Tid) -> io::Result<Vec<Tid>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(absent)?;
    let mut ids = Vec::new();
    for entry in entries {
        ids.extend(entry.map_err(absent)?.file_name().to_str().and_then(|name| name.parse::<Tid>().ok()));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_status() {
        let status = read_status(std::process::id() as Tid).unwrap();
        assert_eq!(status.tgid, std::process::id() as Tid);
        assert_eq!(status.state, RunState::Alive);
        assert_eq!(status.ids_inside, Some([status.tgid; 2]));
        assert!(status.has_memory);
        assert!(thread_ids(status.tgid).unwrap().contains(&status.tgid));
    }

    #[test]
    fn garbage_is_no_panic() {
        let status = parse_status("Name:\nState:\tZ (zombie)\nUid: x\nSeccomp\n");
        assert_eq!(status.state, RunState::Zombie);
        assert!(!status.has_memory);
    }

    #[test]
    fn absent_process() {
        assert_eq!(read_status(0x3fff_ffff).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
