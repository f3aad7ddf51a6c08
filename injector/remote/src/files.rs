//! Gives open files to another process: no path, no permission and no mount namespace of it matters.
//!
//! ```text
//! target:  socketpair ─▶ a, b               recvmsg(b) ─▶ descriptors ─▶ mmap, close
//! we:          pidfd_getfd(a) ─▶ sendmsg(SCM_RIGHTS) ┘
//! ```
//!
//! Numbers of descriptors in the target stand in the scratch mapping before anything can go wrong with them, with the
//! identity of the files, so that a later borrower can close what a killed one has left open.

use crate::borrow::{BUFFERS_LEN, Borrowed};
use crate::calls::{Descriptor, SystemCall};
use crate::error::RemoteError;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Descriptors in one message; the kernel takes at most 253.
const BATCH: usize = 128;

/// Where things lie in the scratch mapping: the first page, then a page for each message.
const SOCKETS: u64 = 0;
const HEADER: u64 = 64;
const VECTOR: u64 = 128;
const BYTE: u64 = 160;
const RECORDS: u64 = 4096;
const RECORD_LEN: u64 = 4096;
const RECORD_COUNT: u64 = (BUFFERS_LEN - RECORDS) / RECORD_LEN;
/// In a record: the number of files, device and inode of each; then the control message that arrives.
const IDENTITIES: u64 = 8;
const CONTROL: u64 = 8 + 16 * BATCH as u64;
const CONTROL_LEN: u64 = 16 + 4 * BATCH as u64;
const _: () = assert!(CONTROL + CONTROL_LEN <= RECORD_LEN);

/// Files that one borrower can pass on.
pub const FILES_MAX: usize = RECORD_COUNT as usize * BATCH;

/// Files that the process has received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Their descriptors there, in the order in which they were given.
    pub files: Vec<u64>,
    /// The sockets that they came through, still open: closing all at once takes one call.
    sockets: [u64; 2],
}

impl Borrowed<'_> {
    /// Makes copies of `files` in the process, close-on-exec, and `then` makes calls that use them. To be called once for a
    /// borrower, with at most [`FILES_MAX`] files.
    ///
    /// # Errors
    /// `EMFILE` when the process has no descriptors left; what a call of `then` returned. None stays open then.
    pub fn receive(
        &mut self,
        files: &[BorrowedFd<'_>],
        then: impl FnOnce(&[Descriptor]) -> Vec<SystemCall>,
    ) -> Result<Received, RemoteError> {
        if files.len() > FILES_MAX {
            let source = io::Error::from_raw_os_error(libc::E2BIG);
            return Err(RemoteError::Local { what: "pass so many files", source });
        }
        let sockets = self.socket_pair()?;
        let result = self.receive_batches(sockets, files, then);
        let mut received = Vec::with_capacity(files.len());
        for index in 0..files.chunks(BATCH).len() {
            received.extend(self.descriptors(self.record(index))?);
        }
        let result = if received.len() < files.len() && is_of_process(&result) {
            let source = io::Error::from_raw_os_error(libc::EMFILE);
            Err(RemoteError::SystemCall { what: "recvmsg (receiving all files)", source })
        } else {
            result
        };
        if let Err(error) = result {
            received.extend(sockets);
            self.close_all(&received)?;
            self.process().memory().write(self.scratch() + SOCKETS, &[0xff; 8])?;
            return Err(error);
        }
        Ok(Received { files: received, sockets })
    }

    fn receive_batches(
        &mut self,
        sockets: [u64; 2],
        files: &[BorrowedFd<'_>],
        then: impl FnOnce(&[Descriptor]) -> Vec<SystemCall>,
    ) -> Result<(), RemoteError> {
        let socket = copy_of([self.process().pid(), self.tid()], sockets[0])?;
        let mut descriptors = Vec::with_capacity(files.len());
        let mut calls = Vec::new();
        for (index, batch) in files.chunks(BATCH).enumerate() {
            // The last message is received together with what is done with the files.
            self.make_all(&std::mem::take(&mut calls))?;
            let record = self.record(index);
            self.announce(batch, record)?;
            send_files(&socket, batch)?;
            calls.push(self.receive_call(sockets[1], record)?);
            let word = |at| Descriptor { word: record + CONTROL + 16 + 4 * at as u64 };
            descriptors.extend((0..batch.len()).map(word));
        }
        calls.extend(then(&descriptors));
        self.make_all(&calls)
    }

    fn record(&self, index: usize) -> u64 {
        self.scratch() + RECORDS + index as u64 * RECORD_LEN
    }

    /// Closes what [`receive`](Borrowed::receive) gave.
    ///
    /// # Errors
    /// `EBADF` when one is not open any more.
    pub fn close_received(&mut self, received: &Received) -> Result<(), RemoteError> {
        let all: Vec<u64> = received.files.iter().chain(&received.sockets).copied().collect();
        self.close_all(&all)?;
        self.process().memory().write(self.scratch() + SOCKETS, &[0xff; 8])
    }

    fn socket_pair(&mut self) -> Result<[u64; 2], RemoteError> {
        let place = self.scratch() + SOCKETS;
        self.process().memory().write(place, &[0xff; 8])?;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let arguments = [libc::AF_UNIX as u64, kind, 0, place, 0, 0];
        self.system_call("socketpair", libc::SYS_socketpair, arguments)?;
        let memory = self.process().memory();
        Ok([u64::from(memory.read_u32(place)?), u64::from(memory.read_u32(place + 4)?)])
    }

    /// Writes down what is about to arrive; until it has, every descriptor is none.
    fn announce(&mut self, files: &[BorrowedFd<'_>], record: u64) -> Result<(), RemoteError> {
        let mut bytes = (files.len() as u64).to_le_bytes().to_vec();
        for file in files {
            let data = nix::sys::stat::fstat(file).map_err(|error| RemoteError::Local {
                what: "look at a file to pass on",
                source: error.into(),
            })?;
            bytes.extend([data.st_dev, data.st_ino].iter().flat_map(|word: &u64| word.to_le_bytes()));
        }
        bytes.resize(CONTROL as usize + 16, 0);
        bytes.resize((CONTROL + CONTROL_LEN) as usize, 0xff);
        self.process().memory().write(record, &bytes)
    }

    /// The call that receives a message: one byte of data, and descriptors.
    fn receive_call(&mut self, socket: u64, record: u64) -> Result<SystemCall, RemoteError> {
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let header = self.message_header(record)?;
        Ok(SystemCall::new("recvmsg", libc::SYS_recvmsg, [socket, header, flags, 0, 0, 0], 1))
    }

    /// A `struct msghdr` with one byte of data and room for the descriptors.
    fn message_header(&mut self, record: u64) -> Result<u64, RemoteError> {
        let base = self.scratch();
        let words = [0, 0, base + VECTOR, 1, record + CONTROL, CONTROL_LEN, 0];
        let header: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        let vector: Vec<u8> = [base + BYTE, 1].iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        self.process().memory().write(base + HEADER, &header)?;
        self.process().memory().write(base + VECTOR, &vector)?;
        Ok(base + HEADER)
    }

    /// The descriptors in a received control message: `cmsg_len`, `cmsg_level`, `cmsg_type`, then the numbers.
    fn descriptors(&self, record: u64) -> Result<Vec<u64>, RemoteError> {
        let memory = self.process().memory();
        let len = memory.read_u64(record + CONTROL)?;
        let count = len.saturating_sub(16).min(4 * BATCH as u64) / 4;
        let bytes = memory.read_vec(record + CONTROL + 16, 4 * count as usize)?;
        let number = |word: &[u8]| word.try_into().map(u32::from_le_bytes).map(u64::from).unwrap_or(u64::MAX);
        Ok(bytes.chunks_exact(4).map(number).collect())
    }

    /// Closes what a borrower that was killed has left open. What cannot be told for certain is left alone.
    pub(crate) fn close_left_behind(&mut self) {
        let socket = |at| self.process().memory().read_u32(self.scratch() + SOCKETS + at).map(u64::from);
        let mut open = Vec::new();
        if let (Ok(first), Ok(second)) = (socket(0), socket(4))
            && first != second
        {
            open.extend([first, second].into_iter().filter(|&socket| self.is_socket(socket)));
        }
        for index in 0..RECORD_COUNT {
            let record = self.scratch() + RECORDS + index * RECORD_LEN;
            let expected = self.identities(record);
            let found = self.descriptors(record).unwrap_or_default();
            let is_ours = |file: &u64| self.identity(*file).is_some_and(|id| expected.contains(&id));
            open.extend(found.into_iter().filter(is_ours));
        }
        for descriptor in open {
            // Gone already, then.
            let _ = self.close_all(&[descriptor]);
        }
    }

    fn identities(&self, record: u64) -> Vec<(u64, u64)> {
        let memory = self.process().memory();
        let count = memory.read_u64(record).unwrap_or(0).min(BATCH as u64);
        let pair = |index| {
            let at = record + IDENTITIES + 16 * index;
            Some((memory.read_u64(at).ok()?, memory.read_u64(at + 8).ok()?))
        };
        (0..count).filter_map(pair).collect()
    }

    fn identity(&self, descriptor: u64) -> Option<(u64, u64)> {
        let data = fs::metadata(format!("/proc/{}/fd/{descriptor}", self.process().pid())).ok()?;
        Some((data.dev(), data.ino()))
    }

    fn is_socket(&self, descriptor: u64) -> bool {
        fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process().pid()))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    }
}

/// Nothing went wrong on our side.
fn is_of_process(result: &Result<(), RemoteError>) -> bool {
    matches!(result, Ok(()) | Err(RemoteError::SystemCall { .. }))
}

fn send_files(socket: &OwnedFd, files: &[BorrowedFd<'_>]) -> Result<(), RemoteError> {
    let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"f")], &rights, MsgFlags::empty(), None)
        .map(drop)
        .map_err(|error| RemoteError::Local { what: "send files to the process", source: error.into() })
}

/// Our own copy of a descriptor of the process, by the id of the process or of one of its living threads: a leader that has
/// exited has no descriptors any more.
fn copy_of([pid, tid]: [i32; 2], descriptor: u64) -> Result<OwnedFd, RemoteError> {
    /// `PIDFD_THREAD`, since Linux 6.9.
    const THREAD: i32 = libc::O_EXCL;
    let copied = copy_by(pid, 0, descriptor);
    let gone = |(_, error): &(&str, io::Error)| error.raw_os_error() == Some(libc::ESRCH);
    let copied = if copied.as_ref().is_err_and(gone) { copy_by(tid, THREAD, descriptor) } else { copied };
    copied.map_err(|(what, source)| RemoteError::Local { what, source })
}

fn copy_by(id: i32, flags: i32, descriptor: u64) -> Result<OwnedFd, (&'static str, io::Error)> {
    let failed = |what| (what, io::Error::last_os_error());
    // SAFETY: plain system calls; each result is checked, and a new descriptor is owned by nobody else.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, id, flags);
        if process < 0 {
            return Err(failed("open the process (pidfd_open)"));
        }
        let process = OwnedFd::from_raw_fd(process as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0);
        if copy < 0 {
            return Err(failed("copy a descriptor of the process (pidfd_getfd)"));
        }
        Ok(OwnedFd::from_raw_fd(copy as i32))
    }
}
