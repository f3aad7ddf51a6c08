//! From a place as it is named to a place in a file: found once, at load.

use crate::EngineError;
use crate::attach_spec::Place;
use beeline_site::{Binary, Location};
use beeline_store::Target;
use rustix::fs::{AtFlags, CWD};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Finds places, and opens each file once.
#[derive(Default)]
pub(crate) struct Targets {
    binaries: BTreeMap<PathBuf, Arc<Binary>>,
}

impl Targets {
    /// The place that `path` and `place` name for this program.
    pub(crate) fn find(&mut self, program: &str, path: &str, place: &Place) -> Result<Target, EngineError> {
        let fail = |reason: String| EngineError::NoPlace {
            program: program.into(),
            place: format!("{path}:{place}"),
            reason,
        };
        let found = beeline_site::find_library(path).map_err(|error| fail(error.to_string()))?;
        // What is probed is the file behind all links, wherever the caller stands.
        let found = found.canonicalize().map_err(|error| fail(error.to_string()))?;
        let binary = match self.binaries.get(&found) {
            Some(binary) => Arc::clone(binary),
            None => {
                let opened = Binary::open(&found).map_err(|error| fail(chain(&error)))?;
                let opened = Arc::new(opened);
                self.binaries.insert(found.clone(), Arc::clone(&opened));
                opened
            }
        };
        let location = match place {
            Place::Symbol { name, offset } => Location::Symbol { name: name.clone(), offset: *offset },
            Place::FileOffset(offset) => Location::FileOffset(*offset),
        };
        let resolved = beeline_site::resolve(&binary, &location).map_err(|error| fail(error.to_string()))?;
        let stat =
            rustix::fs::statat(CWD, &found, AtFlags::empty()).map_err(|error| fail(error.to_string()))?;
        let (symbol, offset) = match place {
            Place::Symbol { name, offset } => (Some(name.clone()), *offset),
            Place::FileOffset(offset) => (None, *offset),
        };
        Ok(Target {
            path: found,
            device: stat.st_dev,
            inode: stat.st_ino,
            build_id: binary.build_id().unwrap_or_default().to_vec(),
            symbol,
            offset,
            file_offset: resolved.file_offset,
        })
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
