package doctor

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestEndingProcessesAreNoDaemons: a flanneld of another network namespace is not one of this host
// while it ends either, when its arguments and its namespaces can no longer be read.
func TestEndingProcessesAreNoDaemons(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip("needs cat")
	}
	program, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	flanneld := filepath.Join(t.TempDir(), "flanneld")
	if err := os.WriteFile(flanneld, program, 0o755); err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	var starter sync.WaitGroup
	defer starter.Wait()
	starter.Go(func() {
		defer ended.Store(true)
		for range 100 {
			c := exec.Command(flanneld, "-u")
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
			input, err := c.StdinPipe()
			if err == nil {
				err = c.Start()
			}
			if err != nil {
				t.Error(err)
				return
			}
			input.Close() // it ends
			c.Wait()
		}
	})
	for !ended.Load() {
		found, err := listDaemons(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range found {
			if d.Foreign || d.Args == nil {
				t.Fatalf("%+v", d)
			}
		}
	}
}
