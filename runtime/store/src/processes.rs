//! What became of the links in each process: in force, refused and why, file not mapped.
//!
//! `processes/<pid>` is a record of the outcomes of attaches to that process, kept while it lives. What is in force is said
//! by the process itself; this is the memory of what is not. A record of a process that has ended, or of an earlier one
//! with the same id, counts as none.

use crate::directory::Directory;
use crate::record::{self, PROCESS, RECORD_MAX};
use crate::store::STAGING;
use crate::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Directory of the records.
pub(crate) const PROCESSES: &str = "processes";

/// What became of links in one process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its id.
    pub pid: u32,
    /// When it began, in clock ticks since boot (`/proc/PID/stat`, field 22): ids are given again.
    pub start_time: u64,
    /// In order of link id.
    pub links: Vec<LinkOutcome>,
}

/// What became of a link's places in a process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LinkOutcome {
    /// The link's id.
    pub link_id: u32,
    /// Places that were put in force, or were already.
    pub in_force: u32,
    /// Places in files that the process had not mapped.
    pub not_mapped: u32,
    /// Places that were refused.
    pub refused: Vec<RefusedPlace>,
}

/// A place that cannot take a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefusedPlace {
    /// Where it is in its file; `None` when the whole process was refused.
    pub file_offset: Option<u64>,
    /// Why, as a sentence.
    pub reason: String,
}

impl Store {
    /// Notes what became of links in a process. What was known of these links there is replaced, the rest stays.
    ///
    /// # Errors
    /// When the store cannot be written. A process that has ended meanwhile is no error.
    pub fn note_process(&self, pid: u32, links: Vec<LinkOutcome>) -> Result<(), StoreError> {
        let Some(start_time) = start_time(pid) else { return Ok(()) };
        let _lock = self.lock()?;
        let directory = match self.root.try_directory(PROCESSES)? {
            Some(directory) => directory,
            None => self.root.create_directory(PROCESSES)?,
        };
        forget_ended(&directory)?;
        let name = pid.to_string();
        let mut record =
            read(&directory, &name).unwrap_or(ProcessRecord { pid, start_time, links: Vec::new() });
        let new: BTreeSet<u32> = links.iter().map(|link| link.link_id).collect();
        record.links.retain(|link| !new.contains(&link.link_id));
        record.links.extend(links);
        record.links.sort_by_key(|link| link.link_id);
        let bytes = record::encode(PROCESS, &record, &directory.join(&name))?;
        let staging = self.root.directory(STAGING)?;
        let aside = format!("process-{name}");
        staging.unlink(&aside)?;
        staging.write(&aside, &bytes)?;
        staging.replace(&aside, &directory, &name)
    }

    /// Forgets what is known of a process.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_process(&self, pid: u32) -> Result<(), StoreError> {
        match self.root.try_directory(PROCESSES)? {
            Some(directory) => directory.unlink(&pid.to_string()),
            None => Ok(()),
        }
    }

    /// Drops the records of processes that have ended; the caller holds the store's lock.
    pub(crate) fn forget_ended_processes(&self) -> Result<(), StoreError> {
        self.root.try_directory(PROCESSES)?.map_or(Ok(()), |directory| forget_ended(&directory))
    }

    /// What is known of processes that live, in order of id. A record that cannot be read counts as none.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessRecord>, StoreError> {
        let Some(directory) = self.root.try_directory(PROCESSES)? else { return Ok(Vec::new()) };
        let names = directory.entries()?;
        let mut records: Vec<ProcessRecord> =
            names.iter().filter_map(|name| read(&directory, name)).collect();
        records.retain(ProcessRecord::is_alive);
        records.sort_by_key(|record| record.pid);
        Ok(records)
    }
}

impl ProcessRecord {
    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

fn forget_ended(directory: &Directory) -> Result<(), StoreError> {
    let names = directory.entries()?;
    let is_needless = |name: &&String| read(directory, name).is_none_or(|record| !record.is_alive());
    names.iter().filter(is_needless).try_for_each(|name| directory.unlink(name))
}

fn read(directory: &Directory, name: &str) -> Option<ProcessRecord> {
    let bytes = directory.read(name, RECORD_MAX).ok()?;
    let record: ProcessRecord = record::decode(PROCESS, &bytes, &directory.join(name)).ok()?;
    (record.pid.to_string() == name).then_some(record)
}

/// When a process began, in clock ticks since boot; `None` when there is none with this id, or it has ended and waits to
/// be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may contain some: fields are counted from the last one on (state is field 3).
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let begun = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(begun)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreName;
    use std::process::Command;

    fn outcome(link_id: u32, reason: &str) -> LinkOutcome {
        let refused = RefusedPlace { file_offset: Some(64), reason: reason.into() };
        LinkOutcome { link_id, in_force: 1, not_mapped: 0, refused: vec![refused] }
    }

    #[test]
    fn outcomes_are_kept_while_the_process_lives() {
        let path = std::path::PathBuf::from(format!("/dev/shm/beeline-processes-{}", std::process::id()));
        let store = Store::open_or_create(&StoreName::Path(path.clone())).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let (ours, theirs) = (std::process::id(), child.id());
        assert_eq!(store.processes().unwrap(), []);
        store.note_process(ours, vec![outcome(7, "a"), outcome(3, "b")]).unwrap();
        store.note_process(theirs, vec![outcome(7, "c")]).unwrap();
        store.note_process(ours, vec![outcome(7, "d"), outcome(9, "e")]).unwrap();
        let links = |pid| {
            let record = store.processes().unwrap().into_iter().find(|record| record.pid == pid);
            record.map(|record| {
                let links = record.links.into_iter();
                links.map(|it| (it.link_id, it.refused[0].reason.clone())).collect::<Vec<_>>()
            })
        };
        let expected = [(3, "b"), (7, "d"), (9, "e")].map(|(id, reason)| (id, reason.to_owned()));
        assert_eq!(links(ours), Some(expected.into()));
        assert_eq!(links(theirs), Some(vec![(7, "c".to_owned())]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(links(theirs), None);
        store.note_process(ours, Vec::new()).unwrap();
        assert!(!path.join(PROCESSES).join(theirs.to_string()).exists(), "it goes at the next write");
        // One that was damaged is none; it is written anew.
        std::fs::write(path.join(PROCESSES).join(ours.to_string()), b"x").unwrap();
        assert_eq!(links(ours), None);
        store.note_process(ours, vec![outcome(1, "f")]).unwrap();
        assert_eq!(links(ours), Some(vec![(1, "f".to_owned())]));
        store.forget_process(ours).unwrap();
        store.forget_process(ours).unwrap();
        assert_eq!(store.processes().unwrap(), []);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_earlier_process_with_the_same_id_is_another_one() {
        let record = ProcessRecord { pid: std::process::id(), start_time: 1, links: Vec::new() };
        assert!(!record.is_alive());
    }
}
