// One program that the verifier refuses, and one that it accepts.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16);
    __type(key, __u32);
    __type(value, __u64);
} values SEC(".maps");

SEC("uprobe/")
int forgotten_check(void *context)
{
    __u32 key = 1;
    __u64 *value = bpf_map_lookup_elem(&values, &key);
    return *value;
}

SEC("uprobe/")
int harmless(void *context)
{
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
