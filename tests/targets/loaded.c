// A library that is loaded and unloaded. Calls its own function when it comes and when it goes.
#ifndef NUMBER
#define NUMBER 3
#endif

__attribute__((noinline, noclone, visibility("default"))) long loaded_work(long a)
{
	__asm__ volatile("" ::: "memory");
	return a * NUMBER + 1;
}

__attribute__((constructor)) static void come(void)
{
	loaded_work(1);
}

__attribute__((destructor)) static void go(void)
{
	loaded_work(2);
}
