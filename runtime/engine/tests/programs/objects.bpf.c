/* Kernel objects and fields of maps: loads typed by BTF, executed as probes. */
#define SEC(n) __attribute__((section(n), used))
#define __ksym __attribute__((section(".ksyms")))
#define CORE __attribute__((preserve_access_index))
typedef unsigned int u32; typedef unsigned long long u64;
struct task_struct {
	int pid, tgid;
	struct task_struct *real_parent, *group_leader, *parent;
	char comm[16];
} CORE;
struct pt_regs { unsigned long ip; } CORE;
struct bpf_map { u32 max_entries, key_size, value_size, id; int map_type; } CORE;
extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static u64 (*bpf_get_current_task)(void) = (void *)35;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*bpf_probe_read_kernel)(void *, u32, const void *) = (void *)113;
static struct pt_regs *(*bpf_task_pt_regs)(struct task_struct *) = (void *)175;
struct {
	int (*type)[2]; /* array */
	int (*max_entries)[7];
	u32 *key;
	u64 *value;
} counts SEC(".maps");
char LICENSE[] SEC("license") = "GPL";
SEC("raw_tp")
int prog(void *ctx)
{
#if CASE == 0 /* the id of a task: accept 1 */
	return bpf_get_current_task_btf()->tgid == (int)(bpf_get_current_pid_tgid() >> 32);
#elif CASE == 1 /* the leader of a group leads itself: accept 1 */
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	return leader == leader->group_leader && leader->pid == leader->tgid;
#elif CASE == 2 /* what is not there is 0: accept 0 */
	struct task_struct *far = bpf_get_current_task_btf();
	for (int i = 0; i < 8; i++)
		far = far->real_parent;
	return 0 * far->pid;
#elif CASE == 3 /* a task is read only: reject only read is supported */
	bpf_get_current_task_btf()->tgid = 1;
	return 0;
#elif CASE == 4 /* a number is no task: reject R0 invalid mem access 'scalar' */
	return ((struct task_struct *)bpf_get_current_task())->tgid;
#elif CASE == 5 /* a number that is taken for a task: accept 1 */
	struct task_struct *task = bpf_rdonly_cast((void *)bpf_get_current_task(),
						   __builtin_preserve_type_info(*(struct task_struct *)0, 0) * 0 +
						   __builtin_btf_type_id(*(struct task_struct *)0, 1));
	return task->tgid == bpf_get_current_task_btf()->tgid;
#elif CASE == 6 /* an address of the program's choice: accept 0 */
	struct task_struct *task = bpf_rdonly_cast((void *)8, __builtin_btf_type_id(*(struct task_struct *)0, 1));
	return task->tgid;
#elif CASE == 7 /* a field's address is read by helpers: accept 1 */
	int tgid;
	bpf_probe_read_kernel(&tgid, 4, &bpf_get_current_task_btf()->tgid);
	return tgid == bpf_get_current_task_btf()->tgid;
#elif CASE == 8 /* sizes of a map: accept 748 */
	struct bpf_map *map = (struct bpf_map *)&counts;
	return map->max_entries * 100 + map->key_size * 10 + map->value_size;
#elif CASE == 9 /* a map is read only: reject only read from bpf_array is supported */
	((struct bpf_map *)&counts)->max_entries = 1;
	return 0;
#elif CASE == 10 /* registers: accept 0 */
	return bpf_task_pt_regs(bpf_get_current_task_btf())->ip * 0;
#elif CASE == 11 /* part of a name: accept 1 */
	return bpf_get_current_task_btf()->comm[0] != 0;
#endif
}
