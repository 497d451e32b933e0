package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMayChangeNetwork compares with what the kernel says in text: in a container, root may lack it.
func TestMayChangeNetwork(t *testing.T) {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, effective, _ := strings.Cut(string(text), "CapEff:\t")
	effective, _, _ = strings.Cut(effective, "\n")
	set, err := strconv.ParseUint(effective, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	type result struct{ before, after bool }
	results, failed := make(chan result, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // ends with this goroutine: capabilities are those of a thread
		var sets [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		r := result{before: mayChangeNetwork()}
		err := unix.Capget(&header, &sets[0])
		if err == nil {
			sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
			err = unix.Capset(&header, &sets[0])
		}
		r.after = mayChangeNetwork()
		failed <- err
		results <- r
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if r := <-results; r.before != (set&(1<<unix.CAP_NET_ADMIN) != 0) || r.after {
		t.Errorf("%+v", r)
	}
}
