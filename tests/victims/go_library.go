// Go inside of a C program (go_host.c): seven goroutines that wait, and a call from C that does.
package main

import "C"

//export Start
func Start() {
	c := make(chan int)
	for i := 0; i < 7; i++ {
		go func() { <-c }()
	}
}

//export Wait
func Wait() {
	<-make(chan int)
}

func main() {}
