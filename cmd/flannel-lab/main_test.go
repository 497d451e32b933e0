package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

func TestParse(t *testing.T) {
	self := "--flanneld=" + os.Args[0]
	for _, test := range []struct {
		args string
		code int
		out  string
	}{
		{"--help", 0, "--backend"},
		{"demo --help", 0, "Usage: flannel-lab"},
		{"bench --help", 0, "--quick"},
		{self + " --hosts 0", 2, "--hosts: 0: must be 1 to 50"},
		{self + " --hosts x", 2, "invalid argument"},
		{self + " --backend vxlna", 2, `--backend: "vxlna": must be one of vxlan, host-gw, udp, alloc`},
		{self + " --quick", 2, "--quick"},
		{"bench --hosts 2 " + self, 2, "--hosts"},
		{"demo more " + self, 2, `"more"`},
		{"bench demo " + self, 2, `"demo"`},
		{"bench --only all " + self, 2, "daemon, convergence"},
		{"--flanneld=/nowhere", 2, "/nowhere"},
		{"bench --flanneld=/", 2, "must be a program"},
	} {
		var out bytes.Buffer
		if code := run(strings.Fields(test.args), &out, &out); code != test.code || !strings.Contains(out.String(), test.out) {
			t.Errorf("%s: code %d, output:\n%s", test.args, code, out.String())
		}
	}
}

// daemon returns the path of the flanneld in FLANNELD, or of one built from this tree.
func daemon(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if path := os.Getenv("FLANNELD"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "flanneld")
	build := exec.Command("go", "build", "-o", path, "../flanneld")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build flanneld: %v\n%s", err, out)
	}
	return path
}

func TestDemo(t *testing.T) {
	path := daemon(t)
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := demo(ctx, settings{hosts: 2, backend: "host-gw", flanneld: path, slice: 10 * time.Millisecond}, newReport(&out)); err != nil {
		t.Errorf("demo: %v", err)
	}
	t.Log(out.String())
	for _, want := range []string{"h2     172.31.200.3", "✓", "bare link", "via 172.31.200.3 dev eth0 proto 70"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not show %q", want)
		}
	}
	out.Reset()
	if err := demo(ctx, settings{hosts: 2, backend: "udp", flanneld: path, slice: 10 * time.Millisecond}, newReport(&out)); err != nil {
		t.Errorf("demo: %v", err)
	}
	t.Log(out.String())
	for _, want := range []string{"1472   flannel0", "tunnel entry", "link flannel0 mtu 1472 type tun up"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo of udp does not show %q", want)
		}
	}
	err := demo(ctx, settings{hosts: 1, flanneld: "/proc/self/exe"}, newReport(&out))
	if err == nil || !strings.Contains(err.Error(), "wait for READY=1") {
		t.Errorf("demo with a flanneld that fails: %v", err)
	}
}

// TestBench measures what flannel-lab bench does, but too short for usable figures.
func TestBench(t *testing.T) {
	path := daemon(t)
	for _, p := range []string{"ip", "bridge"} { // for the baseline
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	short := plan{starts: 1, idle: 50 * time.Millisecond, joins: 2, repairs: 1, away: 50 * time.Millisecond,
		runs: 1, slices: 6, slice: 20 * time.Millisecond, peerCounts: []int{3, 300},
		sizes: []int{10, 1000}, launches: 1, changes: 4, repetitions: 1, faultsAmongFew: 8}
	var out, progress bytes.Buffer
	if err := runBench(t.Context(), path, "", short, &out, &progress); err != nil {
		t.Errorf("bench: %v", err)
	}
	t.Logf("%s%s", progress.String(), out.String())
	for _, want := range []string{"≤ 25 MB", "idle CPU", "new peer in etcd", "ip link del flannel.1", "bridge fdb flush", "SIGKILL", "bare link", "host-gw",
		"udp without offloads", "UDP, 1400 B", "CPU s/GB", "PING P50", "≥ 0.60", "1 peer ", "300 peers", "vxlan, 1,000 peers", "host-gw, 10 peers", "another MAC", "LEASE TO READY", "GET /status", "during requests", "bridge fdb flush dev flannel.1", "worst ≤ 1 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the tables do not show %q", want)
		}
	}
}

// TestBenchStops: a bench that is cancelled measures nothing more and begins to remove everything. How
// long the removal takes depends on what else is done to network namespaces of this machine.
func TestBenchStops(t *testing.T) {
	path := daemon(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	var cancelled, removing time.Time
	err := runBench(ctx, path, "", planOf(false), &out, told{
		"idle":     sync.OnceFunc(func() { cancelled = time.Now(); cancel() }),
		"removing": func() { removing = time.Now() },
	})
	if took := removing.Sub(cancelled); !errors.Is(err, context.Canceled) || cancelled.IsZero() || took < 0 || took > 5*time.Second {
		t.Errorf("bench ended %v after it was cancelled: %v", took, err)
	}
}

// told calls a function when its word is written.
type told map[string]func()

func (c told) Write(p []byte) (int, error) {
	for word, f := range c {
		if bytes.Contains(p, []byte(word)) {
			f()
		}
	}
	return len(p), nil
}
