package presence

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/wait"
)

// TestRegistersLaterIfNotAtOnce: while a lack of descriptors prevents the registration, there is a
// condition.
func TestRegistersLaterIfNotAtOnce(t *testing.T) {
	network := netip.MustParsePrefix("192.0.2.0/24")
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	lift := limitFiles(t, 3)
	type result struct {
		*Registration
		error
	}
	registered := make(chan result, 1)
	go func() {
		r, err := Await(t.Context(), network, "", conditions)
		registered <- result{r, err}
	}()
	wait.True(t, "it cannot register", func() bool { return conditions.Has(registerCondition) })
	if len(registered) > 0 {
		t.Error("registered")
	}
	lift()
	r := <-registered
	if r.error != nil {
		t.Fatal(r.error)
	}
	defer r.Close()
	if len(conditions.Current()) > 0 {
		t.Errorf("conditions %v", conditions.Current())
	}
}

// TestAwaitWaitsForTheOther: while another daemon conflicts, there is a condition.
func TestAwaitWaitsForTheOther(t *testing.T) {
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	network := netip.MustParsePrefix("192.0.2.128/25")
	other, err := Register(network, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Await(ctx, network, "", conditions); err == nil {
		t.Errorf("registered: %v", r)
	}
	registered := make(chan *Registration, 1)
	go func() {
		r, _ := Await(t.Context(), network, "", conditions)
		registered <- r
	}()
	wait.True(t, "it waits", func() bool { return conditions.Has(conflictCondition) })
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	r := <-registered
	if r == nil || len(conditions.Current()) > 0 {
		t.Fatalf("registration %v, conditions %v", r, conditions.Current())
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestTextOfConflicts(t *testing.T) {
	network, other := netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.0.0.0/8")
	for want, held := range map[string]*ConflictError{
		"another flanneld on this host has the same device, waiting for it to stop; set another VNI in one of the networks":    {Daemon: Daemon{Network: other}, Device: "flannel.1"},
		"another flanneld on this host serves the same network, waiting for it to stop":                                        {Daemon: Daemon{Network: network}},
		"another flanneld on this host has an overlapping network, waiting for it to stop; set another Network in one of them": {Daemon: Daemon{Network: other}},
	} {
		if c := conflict(network, held); c.Text != want || (c.Severity == condition.Severe) == (held.Daemon.Network == network) {
			t.Errorf("%v: %q, severity %v; want %q", held, c.Text, c.Severity, want)
		}
	}
}
