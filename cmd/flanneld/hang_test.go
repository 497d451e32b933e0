package main

import (
	"io"
	"strings"
	"testing"

	"flanneld/pkg/lab/wait"
	"flanneld/pkg/logsink"
)

func TestFunctions(t *testing.T) {
	const stacks = `goroutine 1 [semacquire]:
sync.(*WaitGroup).Wait(0xc000010030)
	/usr/local/go/src/sync/waitgroup.go:118 +0x48
flanneld/pkg/daemon.(*daemon).serve(0xc0001a2000, {0x1234, 0xc0})
	flanneld/pkg/daemon/daemon.go:250 +0x3d4
flanneld/pkg/daemon.Run({0x1234, 0xc0})
	flanneld/pkg/daemon/daemon.go:150 +0x3d4

goroutine 7 [IO wait]:
flanneld/pkg/netlink.(*socket).wait(...)
	flanneld/pkg/netlink/socket.go:120
flanneld/pkg/kernel.(*Watch).run(0xc0)
	flanneld/pkg/kernel/watch.go:150 +0x30
created by flanneld/pkg/kernel.(*Kernel).Watch in goroutine 1
	flanneld/pkg/kernel/watch.go:90 +0x30

goroutine 8 [IO wait]:
flanneld/pkg/netlink.(*socket).wait(...)
	flanneld/pkg/netlink/socket.go:120

goroutine 9 [select]:
os/signal.loop()
	/usr/local/go/src/os/signal/signal_unix.go:23 +0x13
created by flanneld/pkg/other.Thing in goroutine 1
`
	if got, want := functions(stacks), "daemon.(*daemon).serve, netlink.(*socket).wait x2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// stopped is a reader of the log that does not read.
type stopped struct{ release chan struct{} }

func (s stopped) Write(b []byte) (int, error) { <-s.release; return len(b), nil }

// TestGoroutinesOfThisProcess: the form is still that of runtime.Stack.
func TestGoroutinesOfThisProcess(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	sink := logsink.New(stopped{release})
	io.WriteString(sink, strings.Repeat("x\n", 3))
	wait.True(t, "the goroutine of the log is found", func() bool { return strings.Contains(goroutines(), "logsink.(*Sink).") })
}
