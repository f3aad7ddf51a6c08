/* Records the programs that a tool hands to bpf(2): preloaded into it, it writes a line of JSON for each PROG_LOAD to the
 * file that RECORD names, with the maps that the program refers to and with what the kernel says of it.
 *
 * Nothing is attached to anything: perf_event_open gives an empty descriptor, and what would attach or enable succeeds
 * without doing it. Tools call bpf(2) through the C library's syscall(), so a symbol of that name is enough.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FDS = 4096, LOG_BYTES = 1 << 20 };

struct map {
    uint32_t type, key, value, max, flags, inner;
    /* Element 0 of an array with one element, as it was when the map was frozen. */
    unsigned char *contents;
    int frozen;
};

static struct map maps[FDS];
static unsigned char events[FDS];

static long raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 asm("r10") = d;
    register long r8 asm("r8") = e;
    register long r9 asm("r9") = f;
    long result;
    asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return result;
}

static long done(long result)
{
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static void print_map(FILE *out, const struct map *map)
{
    fprintf(out, "{\"type\":%u,\"key\":%u,\"value\":%u,\"max\":%u,\"flags\":%u", map->type, map->key, map->value, map->max,
            map->flags);
    if (map->inner < FDS && maps[map->inner].type) {
        fprintf(out, ",\"inner\":");
        print_map(out, &maps[map->inner]);
    }
    if (map->frozen && map->contents) {
        fprintf(out, ",\"frozen\":\"");
        for (uint32_t i = 0; i < map->value; i++)
            fprintf(out, "%02x", map->contents[i]);
        fprintf(out, "\"");
    }
    fprintf(out, "}");
}

/* The maps by the name m<descriptor>, and where the program refers to each. */
static void print_references(FILE *out, const struct bpf_insn *insns, uint32_t count)
{
    unsigned char used[FDS] = { 0 };
    const char *comma = "";
    fprintf(out, "\"maps\":{");
    for (uint32_t i = 0; i < count; i++) {
        uint32_t fd = (uint32_t)insns[i].imm;
        if (insns[i].code != (BPF_LD | BPF_IMM | BPF_DW))
            continue;
        if ((insns[i].src_reg == BPF_PSEUDO_MAP_FD || insns[i].src_reg == BPF_PSEUDO_MAP_VALUE) && fd < FDS && !used[fd]) {
            used[fd] = 1;
            fprintf(out, "%s\"m%u\":", comma, fd);
            print_map(out, &maps[fd]);
            comma = ",";
        }
        i++;
    }
    fprintf(out, "},\"fixups\":{");
    comma = "";
    for (uint32_t fd = 0; fd < FDS; fd++) {
        const char *inner = "";
        if (!used[fd])
            continue;
        fprintf(out, "%s\"m%u\":[", comma, fd);
        comma = ",";
        for (uint32_t i = 0; i < count; i++) {
            if (insns[i].code != (BPF_LD | BPF_IMM | BPF_DW))
                continue;
            if (insns[i].src_reg && (uint32_t)insns[i].imm == fd) {
                fprintf(out, "%s%u", inner, i);
                inner = ",";
            }
            i++;
        }
        fprintf(out, "]");
    }
    fprintf(out, "}");
}

/* Loads the program once more for the verifier's statistics. */
static void print_verdict(FILE *out, const union bpf_attr *attr, size_t size)
{
    char *log = calloc(1, LOG_BYTES);
    union bpf_attr again;
    memset(&again, 0, sizeof(again));
    memcpy(&again, attr, size < sizeof(again) ? size : sizeof(again));
    again.log_level = 4;
    again.log_buf = (uint64_t)(uintptr_t)log;
    again.log_size = LOG_BYTES;
    long fd = raw(SYS_bpf, BPF_PROG_LOAD, (long)&again, (long)size, 0, 0, 0);
    unsigned insns = 0, limit = 0, per_insn = 0, total = 0, peak = 0;
    const char *line = strstr(log, "processed ");
    if (line)
        sscanf(line, "processed %u insns (limit %u) max_states_per_insn %u total_states %u peak_states %u", &insns, &limit,
               &per_insn, &total, &peak);
    fprintf(out, "\"verdict\":\"%s\",\"kernel\":{\"insns\":%u,\"states\":%u,\"peak\":%u}", fd >= 0 ? "accept" : "reject", insns,
            total, peak);
    if (fd >= 0)
        close((int)fd);
    free(log);
}

static void record(const union bpf_attr *attr, size_t size)
{
    const struct bpf_insn *insns = (const void *)(uintptr_t)attr->insns;
    FILE *out = fopen(getenv("RECORD"), "a");
    if (!out)
        return;
    fprintf(out, "{\"name\":\"%.15s\",\"prog_type\":%u,\"expected_attach_type\":%u,\"license\":\"%s\",\"insns\":\"", attr->prog_name,
            attr->prog_type, attr->expected_attach_type, (const char *)(uintptr_t)attr->license);
    for (uint32_t i = 0; i < attr->insn_cnt; i++) {
        struct bpf_insn insn = insns[i];
        if (insn.code == (BPF_LD | BPF_IMM | BPF_DW) &&
            (insn.src_reg == BPF_PSEUDO_MAP_FD || insn.src_reg == BPF_PSEUDO_MAP_VALUE))
            insn.imm = 0;
        for (size_t byte = 0; byte < sizeof(insn); byte++)
            fprintf(out, "%02x", ((const unsigned char *)&insn)[byte]);
    }
    fprintf(out, "\",");
    print_references(out, insns, attr->insn_cnt);
    fprintf(out, ",");
    print_verdict(out, attr, size);
    fprintf(out, "}\n");
    fclose(out);
}

static long bpf(int command, union bpf_attr *attr, size_t size)
{
    struct map *map;
    long result;
    switch (command) {
    case BPF_MAP_CREATE:
        result = raw(SYS_bpf, command, (long)attr, (long)size, 0, 0, 0);
        if (result >= 0 && result < FDS) {
            map = &maps[result];
            *map = (struct map){ attr->map_type,  attr->key_size,  attr->value_size, attr->max_entries,
                                 attr->map_flags, attr->inner_map_fd ? attr->inner_map_fd : FDS, NULL, 0 };
        }
        return result;
    case BPF_MAP_UPDATE_ELEM:
        map = &maps[attr->map_fd % FDS];
        if (map->type == BPF_MAP_TYPE_ARRAY && map->max == 1) {
            map->contents = malloc(map->value);
            memcpy(map->contents, (const void *)(uintptr_t)attr->value, map->value);
        }
        return raw(SYS_bpf, command, (long)attr, (long)size, 0, 0, 0);
    case BPF_MAP_FREEZE:
        maps[attr->map_fd % FDS].frozen = 1;
        return raw(SYS_bpf, command, (long)attr, (long)size, 0, 0, 0);
    case BPF_PROG_LOAD:
        record(attr, size);
        return raw(SYS_bpf, command, (long)attr, (long)size, 0, 0, 0);
    case BPF_LINK_CREATE:
    case BPF_RAW_TRACEPOINT_OPEN:
        return raw(SYS_memfd_create, (long)"link", MFD_CLOEXEC, 0, 0, 0, 0);
    case BPF_PROG_ATTACH:
    case BPF_PROG_TEST_RUN:
        return 0;
    default:
        return raw(SYS_bpf, command, (long)attr, (long)size, 0, 0, 0);
    }
}

long syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf)
        return done(bpf((int)a, (union bpf_attr *)b, (size_t)c));
    if (number == SYS_perf_event_open && ((const struct perf_event_attr *)a)->config != PERF_COUNT_SW_BPF_OUTPUT) {
        long fd = raw(SYS_memfd_create, (long)"event", MFD_CLOEXEC, 0, 0, 0, 0);
        if (fd >= 0 && fd < FDS)
            events[fd] = 1;
        return done(fd);
    }
    return done(raw(number, a, b, c, d, e, f));
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    long argument = va_arg(list, long);
    va_end(list);
    if (fd >= 0 && fd < FDS && events[fd])
        return 0;
    return (int)done(raw(SYS_ioctl, fd, (long)request, argument, 0, 0, 0));
}
