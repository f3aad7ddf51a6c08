// Functions that return in every way that Go has, on goroutines whose stacks grow and move: each counted by itself.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
)

type counts struct{ calls, results uint64 }

var all = map[string]*counts{}

// One return among several; some without a frame.
//
//go:noinline
func choose(n uint64) uint64 {
	if n%3 == 0 {
		return 1
	}
	if n%3 == 1 {
		return n/7 + 100000
	}
	return n*n*3 + 100000
}

// A frame that does not fit: the stack grows in the middle of a chain of calls whose returns are probed.
//
//go:noinline
func deep(n uint64) uint64 {
	var room [64]uint64
	room[n%64] = n
	if n == 0 {
		return 0
	}
	return deep(n-1) + room[n%64] - n + 1
}

// Left by a panic, which a deferred function takes.
//
//go:noinline
func recovers(n uint64) (result uint64) {
	defer func() {
		if recover() != nil {
			result = 7
		}
	}()
	return divide(100, n)
}

//go:noinline
func divide(a, b uint64) uint64 { return a / b }

// A switch by a table.
//
//go:noinline
func table(n uint64) uint64 {
	switch n % 9 {
	case 0:
		return 3
	case 1:
		return n
	case 2:
		return n + 4
	case 3:
		return 9
	case 4:
		return n * n
	case 5:
		return 11
	case 6:
		return n ^ 5
	case 7:
		return 2
	}
	return 1
}

// Waits for others: it returns on another thread than it was called on.
//
//go:noinline
func waits(n uint64, channel chan uint64) uint64 {
	go func() { channel <- n }()
	runtime.Gosched()
	return <-channel
}

func count(name string, results ...uint64) {
	it := all[name]
	for _, result := range results {
		it.calls++
		it.results += result
	}
}

func work(rounds uint64, lock *sync.Mutex) {
	channel := make(chan uint64)
	for i := uint64(0); i < rounds; i++ {
		a, b, c, d := choose(i), recovers(i%3), table(i), waits(i, channel)
		lock.Lock()
		count("choose", a)
		count("recovers", b)
		count("table", c)
		count("waits", d)
		lock.Unlock()
		if i%64 == 0 {
			runtime.GC()
		}
	}
	// On a goroutine of its own: its stack is small.
	done := make(chan uint64)
	go func() { done <- deep(3000) }()
	if got := <-done; got != 3000 {
		fmt.Println("deep is wrong:", got)
		os.Exit(1)
	}
}

func main() {
	rounds, _ := strconv.ParseUint(os.Args[1], 10, 64)
	for _, name := range []string{"choose", "recovers", "table", "waits", "deep"} {
		all[name] = &counts{}
	}
	var lock sync.Mutex
	var group sync.WaitGroup
	const workers = 8
	for i := 0; i < workers; i++ {
		group.Add(1)
		go func() { work(rounds, &lock); group.Done() }()
	}
	group.Wait()
	// The recursion counts itself: 0 to 3000 returned once by each worker.
	all["deep"] = &counts{workers * 3001, workers * 3000 * 3001 / 2}
	for _, name := range []string{"choose", "recovers", "table", "waits", "deep"} {
		fmt.Println(name, all[name].calls, all[name].results)
	}
}
