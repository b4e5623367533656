// A goroutine blocked in a raw system call, its thread with it: main.main > main.outer > main.middle > main.blockedHere.
// The other threads of the process are parked by the Go scheduler.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
)

var steps int

//go:noinline
func blockedHere(fd int) int {
	var buffer [1]byte
	n, _ := syscall.Read(fd, buffer[:])
	steps += n
	return n
}

//go:noinline
func middle(fd int) int { n := blockedHere(fd); steps += n; return n + 1 }

//go:noinline
func outer(fd int) int { n := middle(fd); steps += n; return n + 1 }

func tell(tid int) {
	path := fmt.Sprintf("/proc/self/task/%d/syscall", tid)
	for {
		text, _ := os.ReadFile(path)
		if strings.HasPrefix(string(text), "0 ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	pid := os.Getpid()
	fmt.Printf("{\"ready\":true,\"shape\":\"go\",\"pid\":%d,\"threads\":[{\"name\":\"main\",\"tid\":%d,\"pid\":%d,"+
		"\"inside_tid\":%d,\"inside_pid\":%d,\"state\":\"S\",\"since_ns\":%d}]}\n",
		pid, tid, pid, tid, pid, time.Now().UnixNano())
	var buffer [1]byte
	for {
		if n, err := syscall.Read(0, buffer[:]); n == 0 && err == nil {
			os.Exit(0)
		}
	}
}

func main() {
	runtime.LockOSThread()
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		panic(err)
	}
	go tell(syscall.Gettid())
	outer(fds[0])
}
