package iptables

import (
	"context"
	"os"
	"testing"
	"time"
)

// soon waits for a signal.
func soon(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case _, ok := <-signal:
		if !ok {
			t.Fatalf("%s: the watch has ended", what)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: no signal", what)
	}
}

// calm consumes a pending signal, and reports whether there was none. The watcher has processed all
// events when it has had its turn.
func (b *bed) calm(signal <-chan struct{}) bool {
	b.lock.writing.Lock()
	for w := range b.lock.watchers {
		w.handle(w.drain())
	}
	b.lock.writing.Unlock()
	select {
	case <-signal:
		return false
	default:
		return true
	}
}

func TestWatch(t *testing.T) {
	b := newBed(t, "legacy")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	signal, err := b.lock.watch(ctx)
	b.must(err)
	if !b.calm(signal) {
		t.Error("a signal for nothing")
	}
	for range 20 {
		b.others("iptables -t nat -F")
		soon(t, "flushed by others", signal)
		if len(b.sync(everything(four))) == 0 || !b.calm(signal) {
			t.Error("nothing written, or a signal for our own writing")
		}
		b.settled(everything(four))
		if !b.calm(signal) {
			t.Error("a signal for our own listing")
		}
	}

	for _, gone := range []func() error{
		func() error { return os.Remove(b.lock.path) },
		func() error { return os.Rename(b.lock.path, b.lock.path+".old") },
	} {
		b.calm(signal)
		b.must(gone())
		soon(t, "lock file replaced", signal)
		b.calm(signal)
		b.others("iptables -t nat -F")
		soon(t, "flushed by others with a new lock file", signal)
	}

	cancel()
	for range signal { // until it is closed
	}
	b.sync(nil)
	if len(b.lock.watchers) > 0 {
		t.Error("the watcher is still there")
	}
}

// TestWatchBeforeWriting: a sync writes before the watcher has had its turn: the signal of changes
// by others before that is not lost.
func TestWatchBeforeWriting(t *testing.T) {
	b := newBed(t, "legacy")
	w, err := b.lock.watcher()
	b.must(err)
	b.sync(everything(four))
	if len(w.signal) > 0 {
		t.Error("a signal for our own writing")
	}
	b.others("iptables -t nat -F")
	b.sync(everything(four))
	if len(w.signal) == 0 {
		t.Error("no signal for what others did before our writing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.run(ctx)
}

// TestWatchEnds loses the directory of the lock file.
func TestWatchEnds(t *testing.T) {
	b := newBed(t, "legacy")
	dir := t.TempDir() + "/run"
	b.lock.path = dir + "/xtables.lock"
	if _, err := b.lock.watch(t.Context()); err == nil {
		t.Fatal("no error without a directory")
	}
	b.must(os.Mkdir(dir, 0o700))
	signal, err := b.lock.watch(t.Context())
	b.must(err)
	b.must(os.Rename(dir, dir+".old"))
	b.must(os.Remove(dir + ".old/xtables.lock"))
	soon(t, "lock file removed", signal)
	select {
	case _, ok := <-signal:
		for ok {
			_, ok = <-signal
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the watch has not ended")
	}
}
