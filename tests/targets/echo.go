// A server and its client, one message after another, over the loopback.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	done := make(chan int)
	go serve(listener, done)
	bytes := 0
	for connection := 0; connection < 5; connection++ {
		bytes += talk(listener.Addr().String())
		bytes += <-done
	}
	listener.Close()
	fmt.Println(bytes)
}

func serve(listener net.Listener, done chan int) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		message, bytes := make([]byte, 100), 0
		for {
			if _, err := io.ReadFull(connection, message); err != nil {
				break
			}
			count, _ := connection.Write(message)
			bytes += count
		}
		connection.Close()
		done <- bytes
	}
}

func talk(address string) int {
	connection, err := net.Dial("tcp4", address)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	message, bytes := make([]byte, 100), 0
	for round := 0; round < 40; round++ {
		connection.Write(message)
		count, _ := io.ReadFull(connection, message)
		bytes += count
	}
	connection.Close()
	return bytes
}
