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

// TestRegistersLaterIfNotAtOnce: a lack of descriptors keeps a daemon from registering for a
// while, which is a condition.
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
	registered := make(chan error, 1)
	go func() { registered <- d.register(t.Context()) }()
	for deadline := time.Now().Add(10 * time.Second); !d.conditions.Has(unregistered) && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	said, there := d.conditions.Has(unregistered), d.presence.Load()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !said || there != nil {
		t.Errorf("condition %t, registered %t", said, there != nil)
	}
	if err := <-registered; err != nil {
		t.Fatal(err)
	}
	defer d.presence.Load().Close()
	if d.conditions.Has(unregistered) {
		t.Errorf("conditions %v", d.conditions.Current())
	}
}
