//! A loaded object as a whole.

use crate::{Store, StoreError, record};
use beeline_abi::process::TaskLayout;
use serde::{Deserialize, Serialize};

/// Largest BTF that is read, in bytes.
const BTF_MAX: u64 = 1 << 28;

/// What is known of an object besides its maps, programs and links.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its id in the store.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The file that it was loaded from.
    pub source: String,
    /// Its licence, empty when it has none.
    pub license: String,
    /// CLOCK_REALTIME seconds at which it was loaded.
    pub loaded_at: u64,
    /// User id of the loader.
    pub uid: u32,
    /// Where the fields of `task_struct` lie in the BTF that its programs were relocated against.
    pub task_layout: TaskLayout,
}

/// A `task_struct` without fields: of objects that were relocated against no BTF.
pub const NO_TASK_LAYOUT: TaskLayout = TaskLayout {
    size: 0,
    pid: u32::MAX,
    tgid: u32::MAX,
    comm: u32::MAX,
    real_parent: u32::MAX,
    parent: u32::MAX,
    group_leader: u32::MAX,
    start_time: u32::MAX,
    start_boottime: u32::MAX,
    nsproxy: u32::MAX,
    exit_code: u32::MAX,
    nsproxy_mnt_ns: u32::MAX,
    nsproxy_pid_ns_for_children: u32::MAX,
    nsproxy_size: 0,
    mnt_ns_inum: u32::MAX,
    mnt_ns_size: 0,
};

impl Store {
    /// What is known of an object.
    ///
    /// # Errors
    /// When it is not there, or its file is damaged.
    pub fn object_info(&self, object: &str) -> Result<ObjectInfo, StoreError> {
        let directory = self.object(object)?;
        let bytes = directory.read("meta", record::RECORD_MAX)?;
        record::decode(record::OBJECT, &bytes, &directory.join("meta"))
    }

    /// An object's BTF as it was loaded, raw; `None` when it has none.
    ///
    /// # Errors
    /// When the object is not there, or its file cannot be read.
    pub fn btf_of(&self, object: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let directory = self.object(object)?;
        match directory.try_file("btf")? {
            Some(_) => Ok(Some(directory.read("btf", BTF_MAX)?)),
            None => Ok(None),
        }
    }

    /// The BTF that describes a map: its object's, or that of the object which made it.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn btf_of_map(&self, map: &crate::MapEntry) -> Result<Option<Vec<u8>>, StoreError> {
        let file = crate::name::to_file_name("a map", &map.name)?;
        let Some(object) = map.objects.first() else {
            let types = self.root.directory(crate::store::PIN_TYPES)?;
            let Some(pin) = map.pins.first() else { return Ok(None) };
            let file = crate::name::to_file_name("a pin", pin)?;
            return types.try_file(&file)?.map(|_| types.read(&file, BTF_MAX)).transpose();
        };
        if let Some(types) = self.object(object)?.try_directory("types")?
            && types.try_file(&file)?.is_some()
        {
            return types.read(&file, BTF_MAX).map(Some);
        }
        self.btf_of(object)
    }
}
