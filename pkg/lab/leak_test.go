package lab

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"flanneld/pkg/lab/wait"
)

func TestCloseLeaksNothing(t *testing.T) {
	use := func() {
		ctx, l := newTestLab(t, Options{Hosts: 2})
		h1, h2 := l.Hosts[0], l.Hosts[1]
		pinger, err := h1.StartPinger(h2.Addr, time.Millisecond)
		must(t, err)
		if _, err := h1.Transfer(ctx, &h2.Endpoint, 1000); err != nil {
			t.Error(err)
		}
		if err := l.Etcd.Put(ctx, "/key", "", 0); err != nil {
			t.Error(err)
		}
		pinger.Stop()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	count := func() (goroutines, files int) {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return runtime.NumGoroutine(), len(entries)
	}
	use() // the runtime opens some descriptors once and keeps them
	goroutines, files := count()
	use()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := wait.Until(ctx, func() error {
		if g, f := count(); g > goroutines || f > files {
			return fmt.Errorf("%d goroutines and %d files before, %d and %d after", goroutines, files, g, f)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
