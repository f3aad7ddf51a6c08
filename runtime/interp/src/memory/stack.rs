//! The frames of a run.

use super::{AccessError, FRAME_BYTES, FRAMES_MAX};

/// Frames grow downwards, as on a machine; the youngest has the lowest address.
#[derive(Debug)]
pub(super) struct Stack {
    words: Box<[u64]>,
    depth: usize,
}

impl Stack {
    pub(super) fn new() -> Stack {
        Stack { words: vec![0; FRAMES_MAX * FRAME_BYTES / 8].into_boxed_slice(), depth: 0 }
    }

    /// Address behind the last byte.
    fn top(&mut self) -> u64 {
        self.words.as_mut_ptr_range().end as u64
    }

    pub(super) fn enter(&mut self) -> Result<u64, AccessError> {
        if self.depth == FRAMES_MAX {
            return Err(AccessError::TooDeep);
        }
        self.depth += 1;
        Ok(self.top() - ((self.depth - 1) * FRAME_BYTES) as u64)
    }

    pub(super) fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// First byte and length of the frames in use.
    pub(super) fn in_use(&mut self) -> (u64, u64) {
        let bytes = (self.depth * FRAME_BYTES) as u64;
        (self.top() - bytes, bytes)
    }
}
