// How often a program itself says that its functions were called, and that they returned; for whoever counts from outside.
#pragma once
#include <stdio.h>

#define PROBED __attribute__((noinline, noclone))

struct counted {
	long calls, returns;
};

// Defines the counts of a function.
#define COUNTED(name) static struct counted counted_##name
#define ENTER(name) __atomic_add_fetch(&counted_##name.calls, 1, __ATOMIC_RELAXED)
#define LEAVE(name) __atomic_add_fetch(&counted_##name.returns, 1, __ATOMIC_RELAXED)
// A line for each function: its calls, and how many of them came back.
#define REPORT(name) printf("counted %s %ld %ld\n", #name, counted_##name.calls, counted_##name.returns)
