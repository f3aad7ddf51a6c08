// A Go program with several goroutines that call one function.
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

//go:noinline
func add(a, b int) int {
	return a + b
}

func main() {
	calls := 1000
	if len(os.Args) > 1 {
		calls, _ = strconv.Atoi(os.Args[1])
	}
	const workers = 4
	var group sync.WaitGroup
	sums := make([]int, workers)
	for w := 0; w < workers; w++ {
		group.Add(1)
		go func(w int) {
			defer group.Done()
			for i := 0; i < calls; i++ {
				sums[w] = add(sums[w], 1)
			}
		}(w)
	}
	group.Wait()
	fmt.Println("main.add called", workers*calls, "times, sums", sums)
}
