//! Names: of stores, and of the files that stand for named things.

use crate::StoreError;
use std::path::{Path, PathBuf};

/// Longest name of a store or an object in bytes: a file name has 255, staging names add to it.
pub const NAME_MAX: usize = 128;

/// Where stores lie unless a path is given.
pub(crate) const SHM: &str = "/dev/shm";

/// Which store is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreName {
    /// `/dev/shm/beeline-<uid>/<name>`.
    Named(String),
    /// This directory.
    Path(PathBuf),
}

impl Default for StoreName {
    fn default() -> StoreName {
        StoreName::Named("default".into())
    }
}

impl StoreName {
    /// A text with a `/` is a path, any other is a name.
    ///
    /// # Errors
    /// [`StoreError::BadName`] for a name that cannot be a file name.
    pub fn parse(text: &str) -> Result<StoreName, StoreError> {
        if text.contains('/') {
            return Ok(StoreName::Path(PathBuf::from(text)));
        }
        check_name("a store", text)?;
        Ok(StoreName::Named(text.into()))
    }

    /// The store's directory for the user with this id.
    pub fn directory(&self, uid: u32) -> PathBuf {
        match self {
            StoreName::Named(name) => Path::new(SHM).join(format!("beeline-{uid}")).join(name),
            StoreName::Path(path) => path.clone(),
        }
    }
}

/// Accepts what can be the name of a store or an object: it becomes a directory's name as it stands.
///
/// # Errors
/// [`StoreError::BadName`].
pub fn check_name(what: &'static str, name: &str) -> Result<(), StoreError> {
    let ok = (1..=NAME_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.+@".contains(&byte));
    if ok { Ok(()) } else { Err(StoreError::BadName { what, name: name.into(), max: NAME_MAX }) }
}

/// The file name for a map, program, link or pin: its name, with what a file name should not hold as `%XX`.
///
/// # Errors
/// [`StoreError::BadName`] when the name is empty or too long.
pub(crate) fn to_file_name(what: &'static str, name: &str) -> Result<String, StoreError> {
    let mut file = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"_-+@:".contains(&byte) || (byte == b'.' && at > 0);
        if plain {
            file.push(char::from(byte));
        } else {
            file.push_str(&format!("%{byte:02x}"));
        }
    }
    if file.is_empty() || file.len() > 240 {
        return Err(StoreError::BadName { what, name: name.into(), max: 240 });
    }
    Ok(file)
}

/// The name that [`to_file_name`] was given; `None` for a file name that it does not make.
pub(crate) fn from_file_name(file: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    let name = String::from_utf8(bytes).ok()?;
    (to_file_name("", &name).ok()? == file).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_go_there_and_back() {
        for name in ["counts", ".rodata", "a/b", "ü", "prog%1", "uprobe:x", "..", "."] {
            let file = to_file_name("a map", name).unwrap();
            assert!(!file.contains('/') && !file.starts_with('.'), "{file}");
            assert_eq!(from_file_name(&file).as_deref(), Some(name));
        }
        assert_eq!(from_file_name("%zz"), None);
        assert_eq!(from_file_name("%4"), None);
        assert_eq!(from_file_name("%61"), None, "only one file name per name");
        assert_eq!(from_file_name(".hidden"), None);
    }

    #[test]
    fn store_names() {
        assert_eq!(StoreName::parse("ci").unwrap().directory(7), Path::new("/dev/shm/beeline-7/ci"));
        assert_eq!(StoreName::parse("./x").unwrap(), StoreName::Path("./x".into()));
        for bad in ["", ".", "..", "a b", "x\0", &"n".repeat(129)] {
            assert!(StoreName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
