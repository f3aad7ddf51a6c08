// Calls leaf along different ways and prints the stack that it has there: its address, then the return addresses.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"sort"
)

var lines []string

//go:noinline
func leaf(value int) int {
	pcs := make([]uintptr, 90)
	// Not this function itself: its callers alone.
	count := runtime.Callers(2, pcs)
	line := fmt.Sprintf("%x", reflect.ValueOf(leaf).Pointer())
	for _, pc := range pcs[:count] {
		line += fmt.Sprintf(" %x", pc)
	}
	lines = append(lines, line)
	return value + len(line)
}

//go:noinline
func deep(depth, value int) int {
	if depth > 0 {
		return deep(depth-1, value+1) + 1
	}
	return leaf(value) + 1
}

func main() {
	in := bufio.NewReader(os.Stdin)
	if len(os.Args) > 1 {
		fmt.Println("ready")
		in.ReadString('\n')
	}
	leaf(1)
	deep(30, 1)
	items := []int{2, 1}
	sort.Slice(items, func(a, b int) bool { deep(1, a); return items[a] < items[b] })
	done := make(chan bool)
	go func() { deep(3, 3); done <- true }()
	<-done
	for _, line := range lines {
		fmt.Println(line)
	}
	fmt.Println("done 1")
	if len(os.Args) > 1 {
		in.ReadString('\n')
	}
}
