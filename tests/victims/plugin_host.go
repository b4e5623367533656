// Loads a plugin (its first argument), and lets it start goroutines.
package main

import (
	"bufio"
	"fmt"
	"os"
	"plugin"
)

func main() {
	loaded, err := plugin.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	start, err := loaded.Lookup("Start")
	if err != nil {
		panic(err)
	}
	start.(func())()
	fmt.Printf("{\"ready\":true,\"shape\":\"plugin\",\"pid\":%d,\"threads\":[]}\n", os.Getpid())
	bufio.NewReader(os.Stdin).ReadString('\n')
}
