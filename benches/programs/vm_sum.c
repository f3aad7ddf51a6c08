// Sum of squares: arithmetic in a loop.
unsigned long program(unsigned long *memory, unsigned long length)
{
	unsigned long sum = 0;

	for (unsigned long i = 0; i < 1000; i++)
		sum += i * i ^ (sum >> 3);
	return sum;
}
