package netlink

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialed returns a socket of the test's namespace. It needs no root, nor do requests that only
// read.
func dialed(t testing.TB, protocol, receiveBuffer int) *Conn {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the kernel itself, not qemu between")
	}
	n, err := CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := n.Dial(protocol, receiveBuffer)
	if err != nil {
		t.Skipf("SKIPPED: no such sockets here: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// getLink asks for a link by its name, or for all.
func getLink(name string) *Requests {
	var r Requests
	r.Begin(unix.RTM_GETLINK, 0)
	r.Put8(make([]byte, unix.SizeofIfInfomsg)...)
	if name != "" {
		r.Text(unix.IFLA_IFNAME, name)
	}
	return &r
}

func TestSocketAsks(t *testing.T) {
	c := dialed(t, unix.NETLINK_ROUTE, RequestBuffer)
	if c.Port() == 0 || c.BatchSize() < 1 || c.BatchSize() > maxBatch {
		t.Errorf("port %d, batches of %d", c.Port(), c.BatchSize())
	}
	b, err := c.Get(getLink("lo"))
	if err != nil || After(b, unix.SizeofIfInfomsg).Map()[unix.IFLA_IFNAME].Text() != "lo" {
		t.Errorf("lo: % x, %v", b, err)
	}
	if _, err := c.Get(getLink("no-such-link")); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such link: %v", err)
	}
	names := map[string]bool{}
	err = c.Dump(getLink(""), func() { clear(names) }, func(b []byte) {
		names[After(b, unix.SizeofIfInfomsg).Map()[unix.IFLA_IFNAME].Text()] = true
	})
	if err != nil || !names["lo"] {
		t.Errorf("links: %v, %v", names, err)
	}
	if b, err := c.Pending(); len(b) != 0 || err != nil {
		t.Errorf("left over: % x, %v", b, err)
	}
	c.Close()
	if _, err := c.Get(getLink("lo")); err == nil {
		t.Error("a closed socket answers")
	}
	if _, err := c.Pending(); err == nil {
		t.Error("a closed socket answers")
	}
}

// TestSocketLosesAnswers: few answers fit into a small receive buffer. The kernel refuses each of
// these requests, also of root, so that there is one answer to each.
func TestSocketLosesAnswers(t *testing.T) {
	c := dialed(t, unix.NETLINK_ROUTE, 1)
	c.batch = maxBatch
	var r Requests
	for range 2000 {
		r.Begin(unix.RTM_DELNEIGH, 0)
		r.Put8(unix.AF_INET, 0, 0, 0)
		r.Put32(1<<31 - 2) // no such link
		r.Put32(0)
	}
	for i, err := range c.Batch(&r) {
		var refusal *Error
		if !errors.As(err, &refusal) {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

// TestGenericNetlink: the number of a family is the answer to one request.
func TestGenericNetlink(t *testing.T) {
	c := dialed(t, unix.NETLINK_GENERIC, RequestBuffer)
	family := func(name string) (Attrs, error) {
		var r Requests
		r.Begin(unix.GENL_ID_CTRL, 0)
		r.Put8(unix.CTRL_CMD_GETFAMILY, 1, 0, 0) // struct genlmsghdr
		r.Text(unix.CTRL_ATTR_FAMILY_NAME, name)
		b, err := c.Get(&r)
		return After(b, unix.GENL_HDRLEN), err
	}
	a, err := family("nlctrl")
	if id := a.Map()[unix.CTRL_ATTR_FAMILY_ID].Number(); err != nil || id != unix.GENL_ID_CTRL {
		t.Errorf("nlctrl: % x, %v", []byte(a), err)
	}
	if _, err := family("no-such-family"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such family: %v", err)
	}
}

// TestFollowEndsWithItsContext: also if there is nothing to follow.
func TestFollowEndsWithItsContext(t *testing.T) {
	c := dialed(t, unix.NETLINK_ROUTE, RequestBuffer)
	if err := c.Join(unix.RTNLGRP_MPLS_ROUTE); err != nil { // nothing happens there
		t.Skipf("SKIPPED: %v", err)
	}
	if err := c.Join(1 << 20); err == nil {
		t.Error("joined a group that there is not")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.Follow(ctx, func([]byte) {}) }()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	go func() { ended <- c.Follow(context.Background(), func([]byte) {}) }()
	c.Close()
	if err := <-ended; err == nil {
		t.Error("follows a closed socket")
	}
}

func TestNamespace(t *testing.T) {
	n, err := CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	// In the same namespace, f runs on this goroutine's thread, which needs no privileges.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, failed := unix.Gettid(), errors.New("f failed")
	if err := n.Do(func() error {
		if unix.Gettid() != thread {
			t.Error("on another thread")
		}
		return failed
	}); err != failed {
		t.Errorf("got %v", err)
	}
	n.Close()
	if err := n.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("in a closed namespace: %v", err)
	}
}

// TestOtherNamespace: a socket belongs to the namespace that it was opened in, for any caller.
func TestOtherNamespace(t *testing.T) {
	if os.Geteuid() != 0 || testing.Short() {
		t.Skip("needs root: makes a network namespace")
	}
	opened := make(chan *Namespace)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		var n *Namespace
		if unix.Unshare(unix.CLONE_NEWNET) == nil {
			n, _ = CurrentNamespace()
		}
		opened <- n
	}()
	n := <-opened
	if n == nil {
		t.Skip("needs root: cannot make a network namespace")
	}
	defer n.Close()
	c, err := n.Dial(unix.NETLINK_ROUTE, RequestBuffer)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	links := 0
	err = c.Dump(getLink(""), func() { links = 0 }, func([]byte) { links++ })
	if err != nil || links == 0 {
		t.Fatal(links, err)
	}
	b, err := c.Get(getLink("lo"))
	if err != nil || b[8]&unix.IFF_UP != 0 && b[11]&unix.IFF_UP != 0 { // of a new one, it is down
		t.Errorf("% x, %v", b, err)
	}
}
