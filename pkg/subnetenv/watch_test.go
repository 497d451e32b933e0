package subnetenv

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/wait"
)

// TestWatchSignalsWhatHappensToTheFiles: to them, and to their directory.
func TestWatchSignalsWhatHappensToTheFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flannel")
	path := filepath.Join(dir, "subnet.env")
	if _, err := Write(path, sample, false); err != nil {
		t.Fatal(err)
	}
	var w *watch
	wait.For(t, 10*time.Second, "inotify, of which others may have all instances for a moment", func() (err error) {
		w, err = newWatch(path)
		return err
	})
	defer w.close()
	if _, err := w.rewatch(); err != nil {
		t.Fatal(err)
	}
	write := func(path string) func() error {
		return func() error { return os.WriteFile(path, nil, 0o644) }
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"write", write(path)},
		{"claim", write(ClaimPath(path))},
		{"remove", func() error { return os.Remove(path) }},
		{"replace", func() error { _, err := Write(path, sample, false); return err }},
		{"move away", func() error { return os.Rename(path, path+".old") }},
		{"remove the directory", func() error { return os.RemoveAll(dir) }},
		{"write to another one in its place", func() error {
			if _, err := w.rewatch(); err == nil {
				t.Error("a directory that is not there is watched")
			}
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			for _, want := range []bool{true, false} {
				if other, err := w.rewatch(); err != nil || other != want {
					t.Errorf("another directory: %t, %v", other, err)
				}
			}
			return write(path)()
		}},
		{"move the directory", func() error { return os.Rename(dir, dir+".old") }},
	} {
		for quiet := false; !quiet; { // the signals of the case before
			select {
			case <-w.c:
			case <-time.After(20 * time.Millisecond):
				quiet = true
			}
		}
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		select {
		case <-w.c:
		case <-time.After(10 * time.Second):
			t.Errorf("%s is not signalled", c.name)
		}
	}
}

// TestWatchPassesOverOtherFiles: events are as the kernel writes them.
func TestWatchPassesOverOtherFiles(t *testing.T) {
	w := &watch{names: []string{"subnet.env", "subnet.env.lease"}}
	event := func(mask uint32, name string) []byte {
		padded := append([]byte(name), make([]byte, 16-len(name)%16)...)
		if name == "" {
			padded = nil
		}
		b := binary.NativeEndian.AppendUint32(nil, 1)
		b = binary.NativeEndian.AppendUint32(b, mask)
		b = binary.NativeEndian.AppendUint32(b, 0)
		b = binary.NativeEndian.AppendUint32(b, uint32(len(padded)))
		return append(b, padded...)
	}
	other, ours := event(unix.IN_CREATE, ".subnet.env.123"), event(unix.IN_MOVED_TO, "subnet.env")
	for name, c := range map[string]struct {
		events []byte
		want   bool
	}{
		"ours":             {ours, true},
		"another":          {other, false},
		"ours and another": {append(append([]byte{}, other...), ours...), true},
		"the directory":    {event(unix.IN_DELETE_SELF, ""), true},
		"events were lost": {event(unix.IN_Q_OVERFLOW, ""), true},
		"cut off":          {ours[:20], false},
		"nothing":          {nil, false},
	} {
		if got := w.isRelevant(c.events); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
