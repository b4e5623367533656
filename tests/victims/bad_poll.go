// Incident I1: poll(2) with a timeout that is 0 thousands of times and then negative, inside a lock that goroutines pile
// up on.
//
//	bad_poll [after-line]     with an argument the calls begin when a line arrives on stdin
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const calls = 5000

type pollfd struct {
	fd      int32
	events  int16
	revents int16
}

var heap sync.Mutex
var sunk uintptr

// The time left until a deadline, in milliseconds: nobody clamps it at 0.
//
//go:noinline
func timeLeft(round int) int32 {
	if round < calls {
		return 0
	}
	return -5
}

//go:noinline
func waitForEvents(fd int, timeout int32) {
	set := [1]pollfd{{fd: int32(fd), events: 1}}
	n, _, _ := syscall.Syscall(syscall.SYS_POLL, uintptr(unsafe.Pointer(&set[0])), 1, uintptr(timeout))
	sunk += n
}

//go:noinline
func collectGarbage(fd int) {
	heap.Lock()
	defer heap.Unlock()
	for round := 0; round <= calls; round++ {
		waitForEvents(fd, timeLeft(round))
	}
}

func pileUp() {
	for i := 0; i < 40; i++ {
		go func() {
			heap.Lock()
			heap.Unlock()
		}()
	}
}

func inPoll(tid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid))
	fields := strings.Fields(string(text))
	return len(fields) > 3 && fields[0] == "7" && strings.HasSuffix(fields[3], "fffffffb")
}

func main() {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		panic(err)
	}
	input := bufio.NewReader(os.Stdin)
	if len(os.Args) > 1 {
		if _, err := input.ReadString('\n'); err != nil {
			os.Exit(0)
		}
	}
	collector := make(chan int)
	go func() {
		runtime.LockOSThread()
		collector <- syscall.Gettid()
		collectGarbage(fds[0])
	}()
	tid := <-collector
	for !inPoll(tid) {
		time.Sleep(time.Millisecond)
	}
	pileUp()
	pid := os.Getpid()
	fmt.Printf("{\"ready\":true,\"shape\":\"bad_poll\",\"pid\":%d,\"calls\":%d,\"threads\":[{\"name\":\"collector\",\"tid\":%d,"+
		"\"pid\":%d,\"inside_tid\":%d,\"inside_pid\":%d,\"state\":\"S\",\"since_ns\":%d}]}\n",
		pid, calls, tid, pid, tid, pid, time.Now().UnixNano())
	input.ReadString(0)
	os.Exit(0)
}
