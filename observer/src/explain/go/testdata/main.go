// The program that the tests of Go's tables are run against: inlined calls, generics, closures, methods, and
// functions that are large enough to have long tables. It is built, never run by the tests.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
)

type account struct {
	mu      sync.Mutex
	balance int
}

func addOne(n int) int { return n + len(os.Args) }

func addTwo(n int) int { return addOne(addOne(n)) }

func (a *account) deposit(n int) {
	a.mu.Lock()
	a.balance += addTwo(n)
	a.mu.Unlock()
}

func sum[T int | float64](values []T) (total T) {
	for _, value := range values {
		total += value
	}
	return total
}

//go:noinline
func frameOfKnownSize(n int) byte {
	var room [256]byte
	for i := range room {
		room[i] = byte(n + i)
	}
	fmt.Fprintln(os.Stderr, string(room[:]))
	return room[n&255]
}

func main() {
	a := &account{}
	var wait sync.WaitGroup
	for i := 0; i < 3; i++ {
		i := i
		wait.Add(1)
		go func() {
			defer wait.Done()
			a.deposit(i)
		}()
	}
	wait.Wait()
	words := strings.Fields(strings.Repeat("b a ", a.balance))
	sort.Slice(words, func(i, j int) bool { return words[i] < words[j] })
	fmt.Println(sum([]int{1, 2, len(words)}), sum([]float64{1.5, 2}), frameOfKnownSize(a.balance))
}
