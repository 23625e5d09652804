// Command app is what the tests run in containers. Its first argument says how
// it behaves.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "serve": // until SIGTERM
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
		})
		go func() { _ = http.ListenAndServe(":"+os.Getenv("PORT"), nil) }()
		fmt.Println("serving")
		<-stop
		fmt.Println("stopping")
		time.Sleep(200 * time.Millisecond) // work that a graceful stop waits for
		fmt.Println("stopped")
	case "stubborn": // does not mind SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("serving")
		for {
			time.Sleep(time.Hour)
		}
	case "exit": // CODE
		fmt.Println("one")
		fmt.Println("two")
		fmt.Println("three")
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "oom":
		// No faster than that: the engine's watch for it begins after the
		// process, and never hears of one that is killed before.
		var hoard [][]byte
		for range time.Tick(50 * time.Millisecond) {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 1
			}
			hoard = append(hoard, block)
		}
	case "output": // what is hard to read
		fmt.Println("plain")
		fmt.Print("carriage return\r\n")
		fmt.Println("broken \xff utf-8")
		fmt.Println(strings.Repeat("x", 40_000))
		fmt.Println(strings.Repeat("y", 200_000))
		fmt.Println("")
		fmt.Fprintln(os.Stderr, "to stderr")
		fmt.Print("no line break")
	case "get": // URL
		resp, err := http.Get(os.Args[2])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(resp.Status)
	case "proc": // how the kernel bounds this process
		status, _ := os.ReadFile("/proc/self/status")
		fmt.Print(string(status))
		fmt.Println("uid", os.Getuid())
	case "write": // PATH
		if err := os.WriteFile(os.Args[2], []byte("kept"), 0o600); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "read": // PATH
		text, err := os.ReadFile(os.Args[2])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(string(text))
	case "tick": // lines for ever
		for i := 0; ; i++ {
			fmt.Println(i)
			time.Sleep(10 * time.Millisecond)
		}
	}
}
