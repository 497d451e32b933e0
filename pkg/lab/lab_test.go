package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

// ownerVariable makes the test binary a program that owns a lab with one host until it is killed.
const ownerVariable = "LAB_TEST_OWNER"

func TestMain(m *testing.M) {
	os.Exit(Main(func() int {
		if os.Getenv(ownerVariable) == "" {
			return m.Run()
		}
		l, err := New(context.Background(), Options{Hosts: 1})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		p, err := l.Hosts[0].Run(Command{Path: "/bin/sh", Args: []string{"-c", "sleep 60 & wait"}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(l.state.id, l.Dir, l.Etcd.process.PID(), p.PID())
		select {}
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newTestLab builds a lab, or skips the test if that is not possible, and checks at the end that
// nothing is left.
func newTestLab(t *testing.T, o Options) (context.Context, *Lab) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	l, err := New(ctx, o)
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		assertGone(t, l)
	})
	return ctx, l
}

func assertGone(t *testing.T, l *Lab) {
	t.Helper()
	if left, _ := netnsFiles(namePrefix + l.state.id); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	for _, dir := range []string{l.state.dir, l.Dir} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of the lab is left: %v", dir, err)
		}
	}
	for _, p := range l.processes {
		if err := unix.Kill(p.PID(), 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is left: %v", p.PID(), err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without it there is only one error")
	}
	for _, o := range []Options{
		{Hosts: -1},
		{Hosts: 1022},
		{Hosts: 1000, Racks: 4, Underlay: mustPrefix("10.0.0.0/24")},
		{Underlay: mustPrefix("fd00::/64")},
	} {
		if err := o.complete(); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	ok := Options{Hosts: 1021}
	if err := ok.complete(); err != nil {
		t.Error(err)
	}
}

func TestNewCleansUpWhenCancelled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var fabric string
	_, err := New(ctx, Options{Hosts: 5, Progress: func(line string) {
		if name, ok := strings.CutPrefix(line, "fabric "); ok {
			fabric, _, _ = strings.Cut(name, ":")
		}
		if strings.HasPrefix(line, "host h2") {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("New: %v", err)
	}
	if left, _ := netnsFiles(strings.TrimSuffix(fabric, "fabric")); fabric == "" || len(left) > 0 {
		t.Errorf("fabric %q, left: %v", fabric, left)
	}
}

// When the owner is killed, its processes are killed too. The next lab removes the namespaces, the
// entry, the temporary directory and a process that a program on the host has left behind.
func TestSweepRemovesDeadLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), ownerVariable+"=1")
	out, err := owner.StdoutPipe()
	must(t, err)
	must(t, owner.Start())
	var id, dir string
	var pids [2]int
	_, err = fmt.Fscanln(out, &id, &dir, &pids[0], &pids[1])
	owner.Process.Kill()
	owner.Wait()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, pid := range pids {
		if err := wait.Until(ctx, func() error {
			if processGone(pid) {
				return nil
			}
			return fmt.Errorf("process %d outlives its owner", pid)
		}); err != nil {
			t.Error(err)
		}
	}
	l, err := New(ctx, Options{})
	must(t, err)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := netnsFiles(namePrefix + id); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	for _, path := range []string{dir, stateRoot + "/" + id} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// processGone reports whether a process has ended; a zombie has.
func processGone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestSweepSparesLivingLab(t *testing.T) {
	_, l := newTestLab(t, Options{Hosts: 1})
	other, err := New(t.Context(), Options{})
	must(t, err)
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := netnsFiles(namePrefix + l.state.id); len(left) != 2 {
		t.Errorf("namespaces of the living lab: %v", left)
	}
}
