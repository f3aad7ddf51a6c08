/* Iterators over numbers: bpf_iter_num_new, _next, _destroy. */
typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(n) __attribute__((section(n), used))
#define __ksym __attribute__((section(".ksyms")))
struct bpf_iter_num { u64 __opaque[1]; } __attribute__((aligned(8)));
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __ksym;
char LICENSE[] SEC("license") = "GPL";
#ifndef CASE
#define CASE 0
#endif
SEC("raw_tp")
int prog(void *ctx)
{
	struct bpf_iter_num it;
	int *v; u64 sum = 0;
#if CASE == 0 /* a sum: accept 45 */
	bpf_iter_num_new(&it, 0, 10);
	while ((v = bpf_iter_num_next(&it))) sum += *v;
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 1 /* not destroyed: reject BPF_EXIT instruction in main prog would lead to reference leak */
	bpf_iter_num_new(&it, 0, 10);
	while ((v = bpf_iter_num_next(&it))) sum += *v;
	return sum;
#elif CASE == 2 /* written: reject R0 cannot write into rdonly_mem */
	bpf_iter_num_new(&it, 0, 10);
	while ((v = bpf_iter_num_next(&it))) *v = 1;
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 3 /* not made: reject expected an initialized iter_num as arg #0 */
	while ((v = bpf_iter_num_next(&it))) sum += *v;
	return sum;
#elif CASE == 4 /* without end: reject */
	for (;;) {
		bpf_iter_num_new(&it, 0, 2);
		v = bpf_iter_num_next(&it);
		if (v) sum += *v;
		bpf_iter_num_destroy(&it);
		asm volatile("" : "+r"(sum));
	}
	return sum;
#elif CASE == 5 /* nested: accept 120 */
	struct bpf_iter_num in;
	bpf_iter_num_new(&it, 0, 10);
	while ((v = bpf_iter_num_next(&it))) {
		int *w;
		bpf_iter_num_new(&in, 0, *v);
		while ((w = bpf_iter_num_next(&in))) sum += *w;
		bpf_iter_num_destroy(&in);
	}
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 6 /* bounded index: accept 36 */
	u32 a[8] = {1,2,3,4,5,6,7,8};
	bpf_iter_num_new(&it, 0, 100);
	while ((v = bpf_iter_num_next(&it))) {
		u32 i = *v;
		if (i >= 8) break;
		sum += ((volatile u32 *)a)[i];
	}
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 7 /* unbounded index: reject invalid unbounded variable-offset read from stack R2 */
	u32 a[8] = {1,2,3,4,5,6,7,8};
	bpf_iter_num_new(&it, 0, 8);
	while ((v = bpf_iter_num_next(&it))) {
		u32 i = *v;
		sum += ((volatile u32 *)a)[i];
	}
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 8 /* twice: reject expected uninitialized iter_num as arg #0 */
	bpf_iter_num_new(&it, 0, 8);
	bpf_iter_num_new(&it, 0, 8);
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 9 /* destroyed twice: reject expected an initialized iter_num as arg #0 */
	bpf_iter_num_new(&it, 0, 8);
	bpf_iter_num_destroy(&it);
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 10 /* failed: accept 100 */
	if (bpf_iter_num_new(&it, 5, 0)) sum = 100;
	while ((v = bpf_iter_num_next(&it))) sum++;
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 11 /* a counter beside it: accept 5001 */
	u64 n = 0;
	bpf_iter_num_new(&it, 0, 1000000);
	while ((v = bpf_iter_num_next(&it))) { n += 3; if (n > 5000) break; }
	bpf_iter_num_destroy(&it);
	return n;
#elif CASE == 12 /* read as bytes: reject invalid read from stack off -8+0 size 4 */
	bpf_iter_num_new(&it, 0, 8);
	sum = *(volatile u32 *)&it;
	bpf_iter_num_destroy(&it);
	return sum;
#elif CASE == 13 /* overwritten: reject expected an initialized iter_num as arg #0 */
	bpf_iter_num_new(&it, 0, 8);
	*(volatile u64 *)&it = 0;
	bpf_iter_num_destroy(&it);
	return sum;
#endif
}
