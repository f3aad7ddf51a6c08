// SPDX-License-Identifier: MIT OR Apache-2.0
// Runs another program, and goes on.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

func main() {
	runtime.LockOSThread()
	fmt.Println(os.Getpid())
	if err := exec.Command("/bin/true").Run(); err != nil {
		panic(err)
	}
	for i := 0; i < 10; i++ {
		syscall.Getppid()
	}
	// Threads that end: the runtime gives their stacks away.
	for i := 0; i < 50; i++ {
		done := make(chan bool)
		go func() {
			runtime.LockOSThread()
			syscall.Getppid()
			close(done)
		}()
		<-done
	}
	fmt.Println("done")
}
