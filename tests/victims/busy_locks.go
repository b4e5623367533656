// Healthy: channels, a mutex, a condition, and goroutines that rest.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
	"time"
)

func main() {
	var lock sync.Mutex
	jobs := make(chan int)
	for i := 0; i < 8; i++ {
		go func() {
			for range jobs {
				lock.Lock()
				time.Sleep(100 * time.Microsecond)
				lock.Unlock()
			}
		}()
		go func() {
			for {
				jobs <- 1
			}
		}()
		go func() { <-make(chan int) }()
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
}
