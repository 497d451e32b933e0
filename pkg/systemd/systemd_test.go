package systemd

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/wait"
)

// TestReadyIsToldInTheEnd: that systemd does not listen yet is a condition until it does.
func TestReadyIsToldInTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	Ready(conditions)
	notifyWatchdog(conditions)
	for _, id := range []string{"systemd/ready", "systemd/watchdog"} {
		if !conditions.Has(id) {
			t.Errorf("%s is no condition", id)
		}
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		l.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := l.Read(buf)
		if got := string(buf[:n]); err != nil || got != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	read("READY=1")
	notifyWatchdog(conditions)
	read("WATCHDOG=1")
	wait.True(t, "no condition is left", func() bool { return len(conditions.Current()) == 0 })
}
