package main

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMayChangeNetwork(t *testing.T) {
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
	if r := <-results; r.before != (unix.Geteuid() == 0) || r.after {
		t.Errorf("%+v", r)
	}
}
