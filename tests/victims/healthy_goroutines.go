// Healthy Go programs, each by its name, until stdin is closed:
//
//	rest     an HTTP server with idle keep-alive connections, worker pools, tickers, a lock that is taken in turns
//	load     an HTTP server under load, each answer takes its time
//	peak     ten times the load for some seconds, then little: nothing stays behind
//	pool     a pool that fills on demand, one worker after the other, and then is full
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

func main() {
	map[string]func(){"rest": rest, "load": load, "peak": peak, "pool": pool}[os.Args[1]]()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
}
