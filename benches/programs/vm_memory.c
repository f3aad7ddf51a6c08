// FNV-1a over memory, then a reversal in place: loads, stores and branches.
unsigned long program(unsigned char *memory, unsigned long length)
{
	unsigned long hash = 0xcbf29ce484222325ul;

	for (unsigned long i = 0; i < length; i++)
		hash = (hash ^ memory[i]) * 0x100000001b3ul;
	for (unsigned long i = 0; i < length / 2; i++) {
		unsigned char other = memory[length - 1 - i];
		memory[length - 1 - i] = memory[i];
		memory[i] = other;
	}
	return hash;
}
