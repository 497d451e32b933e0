package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// outputs are what standard error can be: a pipe, as of a shell or docker, and a stream socket,
// as of systemd's journal. Each has little room.
var outputs = map[string]func() (theirs, ours *os.File, err error){
	"pipe": func() (*os.File, *os.File, error) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, nil, err
		}
		_, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 4096)
		return os.NewFile(uintptr(fds[1]), "pipe"), os.NewFile(uintptr(fds[0]), "pipe"), err
	},
	"socket": func() (*os.File, *os.File, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 4096)
	},
}

// startInto starts flanneld with its output connected to a pipe, whose reader can stop or end. Only
// this process reads it.
func (c *cluster) startInto(h *lab.Host, output string, args ...string) (*lab.Process, *os.File) {
	c.t.Helper()
	theirs, ours, err := outputs[output]()
	c.must(err)
	c.t.Cleanup(func() { ours.Close() })
	var stat unix.Stat_t
	c.must(unix.Fstat(int(theirs.Fd()), &stat))
	p, err := h.StartCommand(lab.Command{
		Args:   args,
		Env:    []string{fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino)}, // as by systemd
		Output: theirs,
	})
	theirs.Close()
	c.must(err)
	return p, ours
}

// TestLogReaderEndsOrStops: the reader of the log ends, or stops reading while more is logged. The
// network keeps working, damage is repaired, etcd is followed, and the daemon exits in time.
func TestLogReaderEndsOrStops(t *testing.T) {
	t.Parallel()
	for _, f := range []struct{ output, what, backend string }{
		{"pipe", "ends", "vxlan"}, {"pipe", "stops", "udp"}, {"socket", "ends", "udp"}, {"socket", "stops", "vxlan"},
	} {
		t.Run(f.output+" "+f.what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 2})
			c.put("config", fmt.Sprintf(`{"Network":"10.42.0.0/16","SubnetMin":"10.42.128.0","Backend":{"Type":%q}}`, f.backend))
			p, log := c.startInto(c.Hosts[0], f.output, "-v=1")
			if f.what == "ends" {
				log.Close()
			}
			c.must(p.WaitReady(c.ctx))
			c.start(c.Hosts[1])
			c.connect()
			pings := c.pinger(c.containers[0], c.containers[1])
			link := map[string]string{"vxlan": "flannel.1", "udp": "flannel0"}[f.backend]
			for i := range 30 { // more than fits anywhere
				c.phantom(fmt.Sprintf("10.42.%d.0-24", i), fmt.Sprintf("203.0.113.%d", 1+i), fmt.Sprintf("0e:00:00:00:00:%02x", i))
				c.put("subnets/nonsense", strings.Repeat("x", i))
			}
			if f.backend == "vxlan" {
				c.peers(c.Hosts[0], 5*time.Second, 31)
			}
			c.lossless(pings)
			show := "ip -4 -o addr show dev " + link
			before := c.sh(c.Hosts[0], show)
			c.sh(c.Hosts[0], "ip addr flush dev "+link)
			c.prints(c.Hosts[0], 5*time.Second, show, before)
			begin := time.Now()
			code, err := p.Stop(c.ctx)
			if took := time.Since(begin); code != 0 || err != nil || took > slow(2*time.Second) {
				t.Errorf("exit code %d after %v, %v", code, took, err)
			}
		})
	}
}

// TestDroppedLogLinesAreCounted: the reader stops, and continues later.
func TestDroppedLogLinesAreCounted(t *testing.T) {
	t.Parallel()
	c, h := oneHost(t, upperConfig)
	p, log := c.startInto(h, "pipe", "-v=1")
	c.must(p.WaitReady(c.ctx))
	// Each peer is three operations, each of them a line.
	const peers = 2500
	var leases []etcdkeys.Entry
	for i := range peers {
		leases = append(leases, etcdkeys.Entry{Key: fmt.Sprintf("%s/subnets/10.42.%d.%d-29", c.prefix, i/32, i%32*8),
			Value: phantomValue(fmt.Sprintf("203.%d.113.%d", i/250, 1+i%250), fmt.Sprintf("0e:00:00:00:%02x:%02x", i/256, i%256))})
	}
	// The first lines are buffered, the following ones exceed the buffer.
	for range 2 {
		c.must(c.Etcd.PutAll(c.ctx, leases))
		c.peers(h, 20*time.Second, peers)
		for i := range leases {
			leases[i].Value = strings.Replace(leases[i].Value, `"0e:`, `"12:`, 1)
		}
	}
	lines := bufio.NewScanner(log)
	said := 0
	for lines.Scan() {
		text := lines.Text()
		if _, n, ok := strings.Cut(text, `msg="dropped log lines, standard error is too slow" count=`); ok {
			fmt.Sscan(n, &said)
			break
		}
		if !strings.HasPrefix(text, "time=") && !strings.HasPrefix(text, "\t") {
			t.Errorf("half a line: %q", text)
		}
	}
	if said == 0 {
		t.Fatalf("nothing is said to be dropped: %v", lines.Err())
	}
	t.Logf("%d lines were dropped", said)
	rest := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(log)
		rest <- string(all)
	}()
	c.stop(p)
	if last := <-rest; !strings.HasSuffix(last, "msg=\"flanneld stopped, network left in place\"\n") {
		t.Errorf("the log ends with %q", last)
	}
}

// TestCrashEndsThoughNobodyReads: what the runtime prints at the end of a process, as for
// systemd's watchdog, does not wait for a reader either.
func TestCrashEndsThoughNobodyReads(t *testing.T) {
	t.Parallel()
	for output := range outputs {
		t.Run(output, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 1})
			c.put("config", vxlanConfig)
			p, log := c.startInto(c.Hosts[0], output, "-v=1")
			c.must(p.WaitReady(c.ctx))
			begin := time.Now()
			c.must(p.Signal(syscall.SIGABRT))
			ctx, cancel := context.WithTimeout(c.ctx, slow(10*time.Second))
			defer cancel()
			code, err := p.Wait(ctx)
			if !slices.Contains([]int{2, 128 + int(syscall.SIGABRT)}, code) || err != nil {
				t.Fatalf("exit code %d after %v, %v", code, time.Since(begin), err)
			}
			t.Logf("ended after %v", time.Since(begin).Round(time.Millisecond))
			if text, err := io.ReadAll(log); err != nil || !strings.Contains(string(text), "starting flanneld") {
				t.Errorf("read %q, %v", text, err)
			}
		})
	}
}

// TestLastLineOfFailingStart: an error at the start is the last line, and a reader that has stopped
// does not delay the exit.
func TestLastLineOfFailingStart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	for output := range outputs {
		p, log := c.startInto(c.Hosts[0], output, "-iface=bond7")
		if code, err := p.Wait(c.ctx); code != 1 || err != nil {
			t.Errorf("%s: exit code %d, %v", output, code, err)
		}
		text, err := io.ReadAll(log)
		last := string(text[strings.LastIndex(strings.TrimSpace(string(text)), "\n")+1:])
		if err != nil || !strings.Contains(last, "level=ERROR") || !strings.Contains(last, "bond7") || !strings.HasSuffix(last, "\n") {
			t.Errorf("%s: the log ends with %q, %v", output, last, err)
		}

		var args []string // so many warnings that the room is not enough
		for i := range 200 {
			args = append(args, fmt.Sprintf("-iface=bond%d-%s", i, strings.Repeat("x", 100)))
		}
		begin := time.Now()
		p, _ = c.startInto(c.Hosts[0], output, args...)
		ctx, cancel := context.WithTimeout(c.ctx, slow(3*time.Second))
		if code, err := p.Wait(ctx); code != 1 || err != nil {
			t.Errorf("%s: exit code %d after %v, %v", output, code, time.Since(begin), err)
		}
		cancel()
	}
}
