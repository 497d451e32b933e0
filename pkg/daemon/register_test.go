package daemon

import (
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/netconf"
)

// TestRegistersLaterIfNotAtOnce: what keeps a daemon from registering, here a lack of
// descriptors, is a condition and passes.
func TestRegistersLaterIfNotAtOnce(t *testing.T) {
	c, err := netconf.Parse([]byte(`{"Network":"192.0.2.0/24","SubnetLen":28,"Backend":{"Type":"host-gw"}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.New(c)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{conditions: condition.NewList(slog.New(slog.DiscardHandler)), net: network{c, b}}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err = d.register(t.Context())
	if restored := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || restored != nil {
		t.Fatal(err, restored)
	}
	defer func() { d.presence.Load().Close() }()
	if d.presence.Load() != nil || !d.conditions.Has(unregistered) {
		t.Error("registered without descriptors")
	}
	for deadline := time.Now().Add(30 * time.Second); d.presence.Load() == nil || d.conditions.Has(unregistered); {
		if time.Now().After(deadline) {
			t.Fatalf("still not registered: %v", d.conditions.Current())
		}
		<-time.After(10 * time.Millisecond)
	}
}
