//! Where the fields of the synthetic `task_struct` lie, by the types that programs were relocated against.

use beeline_abi::process::TaskLayout;

use super::{Btf, Kind};

/// "The field does not exist there."
const ABSENT: u32 = u32::MAX;

impl Btf {
    /// The layout of `task_struct`, `nsproxy` and `mnt_namespace`; `None` when there is no `task_struct`.
    pub fn task_layout(&self) -> Option<TaskLayout> {
        let task = self.find("task_struct", Kind::Struct)?;
        let size = |name| self.find(name, Kind::Struct).map_or(0, |ty| ty.size());
        let offset = |name, path| self.field_of(name, path).map_or(ABSENT, |field| field.byte_offset());
        let of_task = |path| offset("task_struct", path);
        // Linux 5.5 renamed real_start_time.
        let start_boottime = match of_task("start_boottime") {
            ABSENT => of_task("real_start_time"),
            found => found,
        };
        Some(TaskLayout {
            size: task.size(),
            pid: of_task("pid"),
            tgid: of_task("tgid"),
            comm: of_task("comm"),
            real_parent: of_task("real_parent"),
            parent: of_task("parent"),
            group_leader: of_task("group_leader"),
            start_time: of_task("start_time"),
            start_boottime,
            nsproxy: of_task("nsproxy"),
            exit_code: of_task("exit_code"),
            nsproxy_mnt_ns: offset("nsproxy", "mnt_ns"),
            nsproxy_pid_ns_for_children: offset("nsproxy", "pid_ns_for_children"),
            nsproxy_size: size("nsproxy"),
            mnt_ns_inum: offset("mnt_namespace", "ns.inum"),
            mnt_ns_size: size("mnt_namespace"),
        })
    }
}
