// Counts primes by trial division: 64-bit remainders.
unsigned long program(unsigned long *memory, unsigned long length)
{
	unsigned long found = 0;

	for (unsigned long n = 2; n < 1000; n++) {
		unsigned long divisor = 2;
		while (divisor * divisor <= n && n % divisor)
			divisor++;
		found += divisor * divisor > n;
	}
	return found;
}
