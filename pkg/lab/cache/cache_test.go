package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"flanneld/pkg/lab/cache"
)

// TestDirIsMadeOnce checks that one of many callers creates the directory, whatever an earlier run
// has left.
func TestDirIsMadeOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	broken := errors.New("broken")
	_, err := cache.Dir("thing", "recipe", func(string) {}, func(dir string) error {
		return errors.Join(os.Mkdir(dir, 0o755), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	var made atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := cache.Dir("thing", "recipe", func(string) {}, func(dir string) error {
				made.Add(1)
				return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
			})
			if _, stat := os.Stat(filepath.Join(dir, "file")); err != nil || stat != nil {
				t.Error(err, stat)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	one, err := cache.Dir("thing", "recipe", func(string) { t.Error("made again") }, nil)
	other, err2 := cache.Dir("thing", "another recipe", func(string) {}, func(dir string) error { return os.Mkdir(dir, 0o755) })
	if err != nil || err2 != nil || one == other {
		t.Errorf("%s, %v; %s, %v", one, err, other, err2)
	}
}
