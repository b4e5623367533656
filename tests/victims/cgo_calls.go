// Goroutines in C: three in a call that never returns, of which C tells nobody. A goroutine of Go waits beside them.
package main

/*
#include <poll.h>

static int nap(int for_ms) {
	return poll(0, 0, for_ms);
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

//go:noinline
func call() { C.nap(-1) }

//go:noinline
func receive(never chan int) { <-never }

func main() {
	for i := 0; i < 3; i++ {
		go call()
	}
	go receive(make(chan int))
	time.Sleep(200 * time.Millisecond)
	fmt.Printf("{\"ready\":true,\"shape\":\"cgo\",\"pid\":%d,\"threads\":[]}\n", os.Getpid())
	bufio.NewReader(os.Stdin).ReadString('\n')
}
