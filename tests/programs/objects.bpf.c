/* What only newer programs use: an iterator over numbers, a dynptr, loads through pointers of kernel objects. */
typedef unsigned int u32;
typedef unsigned long long u64;
#define SEC(name) __attribute__((section(name), used))
#define __ksym __attribute__((section(".ksyms")))
#define CORE __attribute__((preserve_access_index))

struct task_struct {
	int pid, tgid;
	struct task_struct *real_parent;
} CORE;
struct bpf_iter_num {
	u64 opaque[1];
};
struct bpf_dynptr {
	u64 opaque[2];
};
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __ksym;
static void *(*bpf_map_lookup_elem)(void *, const void *) = (void *)1;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static long (*bpf_dynptr_from_mem)(void *, u32, u64, struct bpf_dynptr *) = (void *)197;
static long (*bpf_dynptr_write)(const struct bpf_dynptr *, u32, void *, u32, u64) = (void *)202;

struct {
	int (*type)[2]; /* array */
	int (*max_entries)[5];
	u32 *key;
	u64 *value;
} found SEC(".maps");
char LICENSE[] SEC("license") = "GPL";

static void set(u32 key, u64 to)
{
	u64 *value = bpf_map_lookup_elem(&found, &key);
	if (value)
		*value = to;
}

SEC("uprobe")
int on_entry(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct bpf_iter_num numbers;
	struct bpf_dynptr dynptr;
	u64 sum = 0, answer = 42;
	u32 last = 4;
	u64 *value;
	int *number;

	bpf_iter_num_new(&numbers, 0, 100);
	while ((number = bpf_iter_num_next(&numbers)))
		sum += *number;
	bpf_iter_num_destroy(&numbers);
	set(0, sum);
	set(1, task->tgid);
	set(2, task->real_parent->tgid);
	/* A parent's parent is not there, nor what it could point to. */
	set(3, 1 + task->real_parent->real_parent->real_parent->tgid);
	value = bpf_map_lookup_elem(&found, &last);
	if (value) {
		bpf_dynptr_from_mem(value, sizeof(*value), 0, &dynptr);
		bpf_dynptr_write(&dynptr, 0, &answer, sizeof(answer), 0);
	}
	return 0;
}
