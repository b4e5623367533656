// A plugin: five goroutines that nobody sends anything to.
package main

//go:noinline
func forgotten(results chan int) int { return <-results }

// Start starts them, and returns when they run.
func Start() {
	begun := make(chan bool)
	for i := 0; i < 5; i++ {
		go func() {
			begun <- true
			forgotten(make(chan int))
		}()
		<-begun
	}
}

func main() {}
