package firewalld

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestBusThatDoesNotAnswer: a bus that accepts a connection but does not answer counts as missing
// after a timeout.
func TestBusThatDoesNotAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	ended := make(chan error, 1)
	go func() {
		_, err := Dial(context.Background())
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrNoBus) || !errors.Is(err, errNoReply) {
			t.Error(err)
		}
	case <-time.After(dialTimeout + 10*time.Second):
		t.Error("still waiting")
	}
}
