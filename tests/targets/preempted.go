// Goroutines that compute without a call, more than there are processors: the runtime stops them at any instruction, again and again, and
// all but one of them stand somewhere in the loop at any time.
package main

import (
	"fmt"
	"runtime"
	"sync"
)

//go:noinline
func spin(rounds, seed uint64) uint64 {
	a, b, c, d := seed, seed^0x5555, seed+77, seed*3
	for i := uint64(0); i < rounds; i++ {
		a += b ^ i
		b = b*5 + c
		c ^= a >> 3
		d += c*7 + a
		a ^= d << 2
		b += d ^ a
	}
	return a ^ b ^ c ^ d
}

func main() {
	runtime.GOMAXPROCS(1)
	const rounds, workers, times = 3000000, 8, 60
	expected := [workers]uint64{}
	for i := range expected {
		expected[i] = spin(rounds, uint64(i))
	}
	fmt.Println("ready")
	var group sync.WaitGroup
	for i := 0; i < workers; i++ {
		group.Add(1)
		go func(i int) {
			for k := 0; k < times; k++ {
				if got := spin(rounds, uint64(i)); got != expected[i] {
					fmt.Println("wrong", i, got, expected[i])
				}
			}
			group.Done()
		}(i)
	}
	group.Wait()
	fmt.Println("done")
}
