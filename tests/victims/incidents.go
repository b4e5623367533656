// Incidents of Go services, each by its name: what goes wrong goes on until stdin is closed. A number behind the name of
// the first, second and fourth: milliseconds from one request to the next.
//
//	poll       a plug-in polls with a negative timeout, inside of a lock that every request needs
//	unread     a function returns an unbuffered channel with the result, and nobody reads it
//	cache      a cache without a bound, many allocations: the collector makes requests help it
//	health     a health check with an HTTP client that has no time limit; its peer never answers
//	limit      what is kept comes up to the memory limit: the collector does nothing else any more
package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Engine runs plug-ins, one call at a time.
type Engine struct {
	lock sync.Mutex
	fd   int
}

type pollfd struct {
	fd     int32
	events int16
	got    int16
}

//go:noinline
func (e *Engine) collect(budget time.Duration) {
	// The time that is left, in milliseconds: below zero once the budget is spent.
	left := int64((budget - 5*time.Millisecond) / time.Millisecond)
	fds := [1]pollfd{{fd: int32(e.fd), events: 1}}
	syscall.Syscall(syscall.SYS_POLL, uintptr(unsafe.Pointer(&fds[0])), 1, uintptr(left))
}

//go:noinline
func (e *Engine) Call(budget time.Duration) {
	e.lock.Lock()
	defer e.lock.Unlock()
	if budget == 0 {
		e.collect(budget)
	}
}

func handlePlugin(e *Engine, budget time.Duration) {
	e.Call(budget)
}

func poll(every time.Duration) {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		panic(err)
	}
	e := &Engine{fd: fds[0]}
	go handlePlugin(e, 0)
	for {
		time.Sleep(every)
		go handlePlugin(e, time.Second)
	}
}

//go:noinline
func RunAsync(work func() int) <-chan int {
	result := make(chan int)
	go func() { result <- work() }()
	return result
}

func unread(every time.Duration) {
	for {
		RunAsync(func() int { return 42 })
		time.Sleep(every)
	}
}

type entry struct {
	next *entry
	data [4]*[8]int
}

type lfu struct {
	lock sync.Mutex
	head *entry
	size int
}

func (c *lfu) add(e *entry) {
	c.lock.Lock()
	e.next, c.head = c.head, e
	c.size++
	c.lock.Unlock()
}

//go:noinline
func answer(c *lfu, keep bool) {
	e := &entry{}
	for i := range e.data {
		e.data[i] = &[8]int{i}
	}
	if keep {
		c.add(e)
	}
}

func cache() {
	debug.SetGCPercent(2)
	c := &lfu{}
	for i := 0; i < 400000; i++ {
		answer(c, true)
	}
	requests(c)
}

func limit() {
	c := &lfu{}
	for i := 0; i < 300000; i++ {
		answer(c, true)
	}
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	debug.SetMemoryLimit(int64(memory.Sys - memory.HeapReleased - memory.HeapIdle + 1<<20))
	requests(c)
}

func requests(c *lfu) {
	for i := 0; i < 24; i++ {
		go func() {
			for n := 0; ; n++ {
				answer(c, n%4096 == 0)
			}
		}()
	}
}

//go:noinline
func checkHealth(client *http.Client, url string) {
	response, err := client.Get(url)
	if err == nil {
		response.Body.Close()
	}
}

func health(every time.Duration) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		var kept []net.Conn
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			kept = append(kept, conn)
		}
	}()
	client := &http.Client{Transport: &http.Transport{}}
	url := "http://" + silent.Addr().String() + "/healthz"
	for {
		go checkHealth(client, url)
		time.Sleep(every)
	}
}

func main() {
	runtime.GOMAXPROCS(2)
	every := 50 * time.Millisecond
	if len(os.Args) > 2 {
		number, _ := strconv.Atoi(os.Args[2])
		every = time.Duration(number) * time.Millisecond
	}
	switch os.Args[1] {
	case "poll":
		go poll(every)
	case "unread":
		go unread(every)
	case "cache":
		cache()
	case "health":
		go health(every)
	case "limit":
		limit()
	default:
		panic(os.Args[1])
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
}
