// Answers every request, with some work for the collector and stacks that grow; says on which port.
package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
)

//go:noinline
func deep(depth int) int {
	var room [64]int
	if depth == 0 {
		return len(room)
	}
	return deep(depth-1) + room[depth%64]
}

func answer(response http.ResponseWriter, request *http.Request) {
	parts := make([]string, 0)
	for i := 0; i < 100; i++ {
		parts = append(parts, fmt.Sprint(i))
	}
	fmt.Fprint(response, deep(50), strings.Join(parts, ","))
}

func main() {
	http.HandleFunc("/", answer)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	panic(http.Serve(listener, nil))
}
