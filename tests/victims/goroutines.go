// Goroutines in every way to wait. It prints the runtime's own account of them when it is told to (a line on stdin):
// their number, and their stacks as runtime/pprof writes them. With the argument "churn" goroutines come, grow their
// stacks and go all the time; with "many N" there are N in ten places, and a counter of work done.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type worker struct{ jobs chan int }

//go:noinline
func (w *worker) run() {
	for range w.jobs {
	}
}

//go:noinline
func receive[T any](c chan T) T { return <-c }

//go:noinline
func deep(n int, c chan int) int {
	var room [200]byte
	if n == 0 {
		room[0] = byte(<-c)
		return int(room[0])
	}
	v := deep(n-1, c)
	room[n%200] = byte(v)
	return int(room[(n*7)%200]) + v
}

// Large enough that its frame does not fit into what is read of a stack at first.
//
//go:noinline
func large(c chan int) int {
	var room [100 << 10]byte
	room[len(os.Args)] = byte(<-c)
	return int(room[len(os.Args)*2])
}

func inlined(c chan int) { c <- 1 }

func starter(c chan int, started *sync.WaitGroup) {
	started.Done()
	go deep(30, c)
	select {}
}

var kept []any

func waits() {
	c, full, closed := make(chan int), make(chan int, 3), make(chan string)
	var nothing chan int
	var mutex sync.Mutex
	var both sync.RWMutex
	var group, started sync.WaitGroup
	cond := sync.NewCond(&sync.Mutex{})
	mutex.Lock()
	both.Lock()
	group.Add(1)
	started.Add(1)
	full <- 1
	full <- 2
	full <- 3
	for i := 0; i < 3; i++ {
		w := &worker{jobs: make(chan int)}
		kept = append(kept, w)
		go w.run()
		go inlined(c)
		go func() { full <- 4 }()
		go func() { mutex.Lock() }()
		go func() { both.RLock() }()
		go func() { both.Lock() }()
		go func() { group.Wait() }()
	}
	go func() { receive(closed) }()
	go receive(make(chan float64))
	go func() { <-nothing }()
	go func() { nothing <- 1 }()
	go func() {
		select {
		case v := <-c:
			c <- v
		case full <- 1:
		}
	}()
	go func() {
		cond.L.Lock()
		cond.Wait()
	}()
	go func() { time.Sleep(time.Hour) }()
	go large(make(chan int))
	go starter(make(chan int), &started)
	started.Wait()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { listener.Accept() }()
	go func() {
		var fds [2]int
		runtime.LockOSThread()
		if err := syscall.Pipe(fds[:]); err != nil {
			panic(err)
		}
		var buffer [1]byte
		syscall.Read(fds[0], buffer[:])
	}()
	kept = append(kept, &mutex, &both, &group, cond, full, closed, listener)
}

//go:noinline
func brief(n int, c chan int, done chan struct{}) {
	deep(n, c)
	done <- struct{}{}
}

func churn(k int) {
	c, done := make(chan int), make(chan struct{})
	for i := 0; ; i++ {
		for j := 0; j < 20; j++ {
			go brief((i*7+j*13+k)%60, c, done)
		}
		for j := 0; j < 20; j++ {
			c <- j
		}
		for j := 0; j < 20; j++ {
			<-done
		}
	}
}

var work uint64

func many(n int) {
	c := make(chan int)
	for i := 0; i < n; i++ {
		if i%2 == 0 {
			go deep(i%10, c)
		} else {
			go inlined(make(chan int))
		}
	}
	go func() {
		for {
			atomic.AddUint64(&work, 1)
			kept = kept[:0]
			for i := 0; i < 50; i++ {
				kept = append(kept, strconv.Itoa(i))
			}
		}
	}()
	kept = append(kept, c)
}

// Until nobody moves any more but this one.
func settle() {
	last, same := "", 0
	for same < 20 {
		time.Sleep(10 * time.Millisecond)
		// Without the first, which is this one: its arguments change.
		now := strings.Join(strings.Split(dump(), "\n\n")[1:], "\n\n")
		if now == last {
			same++
		} else {
			last, same = now, 0
		}
	}
}

func dump() string {
	var buffer bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&buffer, 2)
	return buffer.String()
}

func main() {
	mode := "waits"
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	address := ""
	switch mode {
	case "churn":
		for k := 0; k < 4; k++ {
			go churn(k)
		}
	case "many":
		n, _ := strconv.Atoi(os.Args[2])
		many(n)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		address = listener.Addr().String()
		go http.Serve(listener, nil)
	default:
		waits()
		settle()
	}
	fmt.Printf("{\"ready\":true,\"shape\":\"%s\",\"pid\":%d,\"address\":\"%s\",\"threads\":[]}\n", mode, os.Getpid(), address)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer := map[string]any{"work": atomic.LoadUint64(&work), "count": runtime.NumGoroutine()}
		if lines.Text() == "dump" {
			answer["dump"] = dump()
		}
		text, _ := json.Marshal(answer)
		fmt.Println(string(text))
	}
}
