package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnetenv"
)

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestFightOverTheSubnetFile: a program that keeps writing something else slows the repairs
// down, and is a condition for as long as it does.
func TestFightOverTheSubnetFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	env := subnetenv.Env{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24"), MTU: 1450}
	var lines logBuffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	conditions := condition.NewList(log)
	f := newFiles(path, conditions, log)
	f.begin(func() (subnetenv.Env, error) { return env, nil }, func(bool, bool) {})
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() { f.run(ctx) })

	deadline := time.Now().Add(30 * time.Second)
	begun := time.Now()
	for !conditions.Has(fileFightCondition) {
		if time.Now().After(deadline) {
			t.Fatalf("no condition; the log is\n%s", lines.String())
		}
		if err := os.WriteFile(path, []byte("FLANNEL_MTU=1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
	most := fileFights + 2 + int(time.Since(begun)/fileFightPause)
	if n := strings.Count(lines.String(), "repaired"); n > most {
		t.Errorf("%d repairs in %v, want %d at most", n, time.Since(begun), most)
	}
	for conditions.Has(fileFightCondition) {
		if time.Now().After(deadline) {
			t.Fatalf("the condition stays; the log is\n%s", lines.String())
		}
		<-time.After(10 * time.Millisecond)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(env.Format()) {
		t.Errorf("%v, the file is\n%s", err, b)
	}
}

// TestSubnetFileWhileTheUplinkIsAway: there are no facts then, and the MTU stays; the subnet
// is followed, and the file repaired.
func TestSubnetFileWhileTheUplinkIsAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	env := subnetenv.Env{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24"), MTU: 1450}
	away := error(reconcile.ReportedError{Err: errors.New("the uplink is away")})
	log := slog.New(slog.DiscardHandler)
	conditions := condition.NewList(log)
	f := newFiles(path, conditions, log)
	now, err := env, away
	now.MTU = 0
	f.begin(func() (subnetenv.Env, error) { return now, err }, func(bool, bool) {})
	if pause, _ := f.look(); pause != fileRetry {
		t.Errorf("the first file is looked at again after %v", pause)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written without an MTU")
	}
	now, err = env, nil
	f.look()
	for _, subnet := range []string{"10.42.7.0/24", "10.42.8.0/24"} {
		now.MTU, now.Subnet, err = 0, netip.MustParsePrefix(subnet), away
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		f.look()
		want := env
		want.Subnet = now.Subnet
		if b, err := os.ReadFile(path); err != nil || string(b) != string(want.Format()) {
			t.Errorf("%v, the file is\n%s", err, b)
		}
	}
	if len(conditions.Current()) > 0 {
		t.Errorf("conditions %v", conditions.Current())
	}
}
