// Five goroutines that run a hundred times a second and wait at the same place in between, five that never run again, and
// a heap of some 64 MiB. To each line on stdin it answers with what the runtime says of its heap.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"time"
)

var kept [][]byte

//go:noinline
func beat(ticks <-chan time.Time) {
	for range ticks {
	}
}

//go:noinline
func rest(never chan int) { <-never }

func main() {
	for i := 0; i < 1024; i++ {
		kept = append(kept, make([]byte, 64<<10))
	}
	never := make(chan int)
	for i := 0; i < 5; i++ {
		go beat(time.NewTicker(10 * time.Millisecond).C)
		go rest(never)
	}
	runtime.GC()
	fmt.Printf("{\"ready\":true,\"shape\":\"pulse\",\"pid\":%d,\"threads\":[]}\n", os.Getpid())
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		fmt.Printf("{\"heap\":%d}\n", memory.HeapAlloc)
	}
	runtime.KeepAlive(kept)
}
