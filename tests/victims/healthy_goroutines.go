// Healthy Go programs, each by its name, until stdin is closed:
//
//	rest     an HTTP server with idle keep-alive connections, worker pools, tickers, a lock that is taken in turns
//	load     an HTTP server under load, each answer takes its time
//	peak     ten times the load for some seconds, then little: nothing stays behind
//	pool     a pool that fills on demand, one worker after the other, and then is full
//	slow     the same, over fifteen seconds: longer than growth is watched
//	bursts   every three seconds a burst that is gone a second later, each larger than the one before
//	sessions connections that become more and more and stay, each with a goroutine that is told something twice a second
//	alloc    a busy collector: many small requests allocate, and the heap may grow by half only: some ten collections a second
//	spare    the same between long pauses
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

func serve(answer time.Duration) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(answer/2 + time.Duration(rand.Int63n(int64(answer))))
		io.WriteString(w, "ok")
	})
	go http.Serve(listener, handler)
	return "http://" + listener.Addr().String()
}

func get(client *http.Client, url string) {
	response, err := client.Get(url)
	if err == nil {
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

func client(idle int) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: idle}}
}

func rest() {
	url, c := serve(time.Millisecond), client(64)
	var started sync.WaitGroup
	for i := 0; i < 32; i++ {
		started.Add(1)
		go func() {
			defer started.Done()
			get(c, url)
		}()
	}
	started.Wait()
	jobs, results := make(chan int), make(chan int, 8)
	var lock sync.Mutex
	for i := 0; i < 16; i++ {
		go func() {
			for job := range jobs {
				lock.Lock()
				time.Sleep(time.Millisecond)
				lock.Unlock()
				results <- job
			}
		}()
	}
	go func() {
		for range results {
		}
	}()
	for i := 0; i < 8; i++ {
		every := time.Duration(i*100+50) * time.Millisecond
		go func() {
			for range time.NewTicker(every).C {
				jobs <- 1
			}
		}()
	}
	go func() {
		for range time.NewTicker(time.Hour).C {
		}
	}()
	done, _ := context.WithCancel(context.Background())
	for i := 0; i < 8; i++ {
		go func() { <-done.Done() }()
	}
	woken := sync.NewCond(&sync.Mutex{})
	for i := 0; i < 4; i++ {
		go func() {
			woken.L.Lock()
			woken.Wait()
		}()
	}
}

func request(c *http.Client, url string, every time.Duration, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(every):
			go get(c, url)
		}
	}
}

func load() {
	url, c := serve(200*time.Millisecond), client(256)
	go request(c, url, 5*time.Millisecond, nil)
}

func peak() {
	url, c := serve(300*time.Millisecond), client(4)
	go request(c, url, 50*time.Millisecond, nil)
	go func() {
		for {
			time.Sleep(4 * time.Second)
			stop := make(chan struct{})
			for i := 0; i < 4; i++ {
				go request(c, url, 4*time.Millisecond, stop)
				time.Sleep(500 * time.Millisecond)
			}
			time.Sleep(3 * time.Second)
			close(stop)
		}
	}()
}

func pool() {
	var workers int64
	jobs := make(chan int)
	worker := func() {
		for range jobs {
			time.Sleep(time.Millisecond)
		}
	}
	go func() {
		// After the start of the program, a new worker now and then until there are enough.
		time.Sleep(9 * time.Second)
		for atomic.AddInt64(&workers, 1) <= 48 {
			go worker()
			time.Sleep(100 * time.Millisecond)
		}
		for {
			jobs <- 1
			time.Sleep(20 * time.Millisecond)
		}
	}()
}

func slow() {
	jobs := make(chan int)
	worker := func() {
		for range jobs {
			time.Sleep(time.Millisecond)
		}
	}
	go func() {
		time.Sleep(11 * time.Second)
		for i := 0; i < 40; i++ {
			go worker()
			time.Sleep(375 * time.Millisecond)
		}
	}()
	go func() {
		for {
			time.Sleep(15 * time.Millisecond)
			select {
			case jobs <- 1:
			default:
			}
		}
	}()
}

func burst(count int) {
	done := make(chan struct{})
	for i := 0; i < count; i++ {
		go func() {
			select {
			case <-done:
			case <-time.After(time.Second):
			}
		}()
	}
}

func bursts() {
	go func() {
		for count := 20; ; count += 10 {
			burst(count)
			time.Sleep(3 * time.Second)
		}
	}()
}

type session struct {
	conn net.Conn
	out  chan string
	done chan struct{}
}

func (s *session) read() {
	io.Copy(io.Discard, s.conn)
	close(s.done)
}

func (s *session) write() {
	for {
		select {
		case text := <-s.out:
			io.WriteString(s.conn, text)
		case <-s.done:
			return
		}
	}
}

func sessions() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var lock sync.Mutex
	var all []*session
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s := &session{conn, make(chan string, 4), make(chan struct{})}
			go s.read()
			go s.write()
			lock.Lock()
			all = append(all, s)
			lock.Unlock()
		}
	}()
	go func() {
		for range time.NewTicker(500 * time.Millisecond).C {
			lock.Lock()
			for _, s := range all {
				s.out <- "news"
			}
			lock.Unlock()
		}
	}()
	go func() {
		for {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err == nil {
				go io.Copy(io.Discard, conn)
			}
			time.Sleep(250 * time.Millisecond)
		}
	}()
}

type node struct {
	next *node
	data [6]*int
}

//go:noinline
func grow(count int) *node {
	var all *node
	for i := 0; i < count; i++ {
		all = &node{next: all}
		for j := range all.data {
			all.data[j] = new(int)
		}
	}
	return all
}

// Requests of some milliseconds, each of which allocates what is garbage right after it.
func allocating(requests int, every, pause time.Duration) {
	debug.SetGCPercent(50)
	kept := grow(100000)
	for i := 0; i < requests; i++ {
		go func() {
			for n := 1; ; n++ {
				grow(250)
				time.Sleep(every)
				if pause > 0 && n%50 == 0 {
					time.Sleep(pause)
				}
			}
		}()
	}
	go func() {
		for {
			time.Sleep(time.Hour)
			runtime.KeepAlive(kept)
		}
	}()
}

func alloc() { allocating(16, 20*time.Millisecond, 0) }
func spare() { allocating(16, 20*time.Millisecond, 5*time.Second) }

func main() {
	map[string]func(){
		"rest": rest, "load": load, "peak": peak, "pool": pool, "slow": slow, "bursts": bursts, "sessions": sessions,
		"alloc": alloc, "spare": spare,
	}[os.Args[1]]()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
}
