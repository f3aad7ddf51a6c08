//! Directories and files of a store, reached by descriptor and never through a symbolic link.
//!
//! Every open checks owner and mode: what another user could have written is refused before a byte of it is read.

use crate::StoreError;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// An open directory that only this user can write, and the path by which it is called in messages.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Which file a name stands for, whatever it is called: device and inode.
pub(crate) type Identity = (u64, u64);

impl Directory {
    /// Opens a directory by path. Its last component must not be a symbolic link.
    pub(crate) fn open(path: &Path) -> Result<Directory, StoreError> {
        let fd = fs::open(path, directory_flags(), Mode::empty()).map_err(open_error(path, "directory"))?;
        check_owner(&fd, path, FileType::Directory)?;
        Ok(Directory { fd, path: path.into() })
    }

    /// Opens a directory that may belong to anybody, to make a new entry in it.
    pub(crate) fn open_anybodys(path: &Path) -> Result<Directory, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(open_error(path, "directory"))?;
        Ok(Directory { fd, path: path.into() })
    }

    /// Makes a directory by path, or opens the one that is there.
    pub(crate) fn create_or_open(path: &Path) -> Result<Directory, StoreError> {
        match fs::mkdir(path, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => Directory::open(path),
            Err(error) => Err(StoreError::io("create the directory", path, 0)(error)),
        }
    }

    /// The path for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry, for messages.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Refuses a directory that is not on tmpfs (`TMPFS_MAGIC`, `linux/magic.h`).
    pub(crate) fn require_tmpfs(&self) -> Result<(), StoreError> {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        let stat = fs::fstatfs(&self.fd).map_err(StoreError::io("inspect", &self.path, 0))?;
        if stat.f_type as u64 == TMPFS_MAGIC {
            Ok(())
        } else {
            Err(StoreError::NotTmpfs { path: self.path.clone() })
        }
    }

    /// Opens a directory inside this one.
    pub(crate) fn directory(&self, name: &str) -> Result<Directory, StoreError> {
        let path = self.join(name);
        let fd = fs::openat(&self.fd, name, directory_flags(), Mode::empty())
            .map_err(open_error(&path, "directory"))?;
        check_owner(&fd, &path, FileType::Directory)?;
        Ok(Directory { fd, path })
    }

    /// As [`Directory::directory`]; `None` when there is none.
    pub(crate) fn try_directory(&self, name: &str) -> Result<Option<Directory>, StoreError> {
        absent_is_none(self.directory(name))
    }

    /// Makes a new directory inside this one.
    pub(crate) fn create_directory(&self, name: &str) -> Result<Directory, StoreError> {
        fs::mkdirat(&self.fd, name, DIRECTORY_MODE).map_err(StoreError::io(
            "create the directory",
            self.join(name),
            0,
        ))?;
        self.directory(name)
    }

    /// Opens a file for reading and writing.
    pub(crate) fn file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.join(name);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd =
            fs::openat(&self.fd, name, flags, Mode::empty()).map_err(open_error(&path, "regular file"))?;
        check_owner(&fd, &path, FileType::RegularFile)?;
        Ok(File::from(fd))
    }

    /// As [`Directory::file`]; `None` when there is none.
    pub(crate) fn try_file(&self, name: &str) -> Result<Option<File>, StoreError> {
        absent_is_none(self.file(name))
    }

    /// Makes a new, empty file.
    pub(crate) fn create_file(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name, flags, FILE_MODE).map_err(StoreError::io(
            "create the file",
            self.join(name),
            0,
        ))?;
        Ok(File::from(fd))
    }

    /// Makes a new file of zeros whose memory is really there.
    pub(crate) fn create_allocated(&self, name: &str, len: u64) -> Result<File, StoreError> {
        let file = self.create_file(name)?;
        allocate(&file, len, true).map_err(StoreError::io("allocate", self.join(name), len))?;
        Ok(file)
    }

    /// Makes a new file with these contents.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<(), StoreError> {
        let mut file = self.create_file(name)?;
        file.write_all(contents).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            StoreError::io("write", self.join(name), contents.len() as u64)(errno)
        })
    }

    /// The contents of a file, at most `max` bytes.
    pub(crate) fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.join(name);
        read_all(self.file(name)?, &path, max)
    }

    /// Names of the entries in order, without `.` and `..`. Names that are not UTF-8 are none of ours and left out.
    pub(crate) fn entries(&self) -> Result<Vec<String>, StoreError> {
        let fail = |errno| StoreError::io("list", &self.path, 0)(errno);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort();
        Ok(names)
    }

    /// Moves an entry; fails with [`Errno::EXIST`] when the new name is taken.
    pub(crate) fn rename_new(&self, name: &str, to: &Directory, new_name: &str) -> Result<(), Errno> {
        fs::renameat_with(&self.fd, name, &to.fd, new_name, RenameFlags::NOREPLACE)
    }

    /// Moves a file to a name whose old file goes.
    pub(crate) fn replace(&self, name: &str, to: &Directory, new_name: &str) -> Result<(), StoreError> {
        let fail = StoreError::io("replace", to.join(new_name), 0);
        fs::renameat(&self.fd, name, &to.fd, new_name).map_err(fail)
    }

    /// Gives a file a second name; fails with [`Errno::EXIST`] when it is taken.
    pub(crate) fn link(&self, name: &str, to: &Directory, new_name: &str) -> Result<(), Errno> {
        fs::linkat(&self.fd, name, &to.fd, new_name, AtFlags::empty())
    }

    /// Removes a file's name; nothing happens when it is not there.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), StoreError> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(StoreError::io("remove", self.join(name), 0)(error)),
        }
    }

    /// Removes an entry and, when it is a directory, all that is in it. Never follows a link.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<(), StoreError> {
        let fail = |errno| StoreError::io("remove", self.join(name), 0)(errno);
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(fail(error)),
        }
        let inner = fs::openat(&self.fd, name, directory_flags(), Mode::empty()).map_err(fail)?;
        let inner = Directory { fd: inner, path: self.join(name) };
        for entry in inner.entries()? {
            inner.remove_tree(&entry)?;
        }
        match fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(fail(error)),
        }
    }

    /// Which file an entry is.
    pub(crate) fn identity(&self, name: &str) -> Result<Identity, StoreError> {
        let stat = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(StoreError::io(
            "inspect",
            self.join(name),
            0,
        ))?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

/// Sets a file's length; with `whole`, all of its memory is allocated now instead of at first touch.
pub(crate) fn allocate(file: &File, len: u64, whole: bool) -> Result<(), Errno> {
    fs::ftruncate(file, len)?;
    if !whole || len == 0 {
        return Ok(());
    }
    loop {
        match fs::fallocate(file, fs::FallocateFlags::empty(), 0, len) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Reads a whole file, refusing one that is larger than `max` bytes.
pub(crate) fn read_all(file: File, path: &Path, max: u64) -> Result<Vec<u8>, StoreError> {
    let mut contents = Vec::new();
    file.take(max + 1).read_to_end(&mut contents).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        StoreError::io("read", path, 0)(errno)
    })?;
    if contents.len() as u64 > max {
        return Err(StoreError::corrupt(path, format!("it is larger than {max} bytes")));
    }
    Ok(contents)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// `ELOOP` and `ENOTDIR` come from a symbolic link or a file in the place of what we made.
fn open_error(path: &Path, expected: &'static str) -> impl FnOnce(Errno) -> StoreError {
    let path = path.to_owned();
    move |errno| match errno {
        Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => StoreError::WrongKind { path, expected },
        _ => StoreError::io("open", path, 0)(errno),
    }
}

fn check_owner(fd: &impl AsFd, path: &Path, kind: FileType) -> Result<(), StoreError> {
    let stat = fs::fstat(fd).map_err(StoreError::io("inspect", path, 0))?;
    let path = path.to_owned();
    if FileType::from_raw_mode(stat.st_mode) != kind {
        let expected = if kind == FileType::Directory { "directory" } else { "regular file" };
        return Err(StoreError::WrongKind { path, expected });
    }
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(StoreError::ForeignOwner { path, owner: stat.st_uid, user });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(StoreError::WritableByOthers { path, mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn absent_is_none<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::Io { source: Errno::NOENT, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
