package subnetenv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

// TestFightOverTheSubnetFile: if another program keeps changing the file, repairs slow down, and
// there is a condition as long as it does.
func TestFightOverTheSubnetFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	env := Env{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24"), MTU: 1450}
	var lines logs.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	conditions := condition.NewList(log)
	k := NewKeeper(path, conditions, log)
	k.fight.Limits = &pace.Limits{Burst: 5, Leak: time.Second, Pause: 200 * time.Millisecond}
	k.Update(func(e *Env) { *e = env })
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() { k.Run(ctx, func(bool, bool) {}) })

	begun := time.Now()
	wait.True(t, "the fight is a condition", func() bool {
		if err := os.WriteFile(path, []byte("FLANNEL_MTU=1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return conditions.Has(fightCondition)
	})
	most := k.fight.Burst + 2 + int(time.Since(begun)/k.fight.Pause)
	if n := strings.Count(lines.String(), "repaired"); n > most {
		t.Errorf("%d repairs in %v, want %d at most", n, time.Since(begun), most)
	}
	wait.True(t, "the condition is over", func() bool { return !conditions.Has(fightCondition) })
	if b, err := os.ReadFile(path); err != nil || string(b) != string(env.Format()) {
		t.Errorf("%v, the file is\n%s", err, b)
	}
}

// TestSubnetFileIsWrittenOnceAllIsKnown: what each source knows comes by itself. From then on the
// file follows, and is repaired.
func TestSubnetFileIsWrittenOnceAllIsKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	log := slog.New(slog.DiscardHandler)
	conditions := condition.NewList(log)
	k := NewKeeper(path, conditions, log)
	var told []string
	k.onChange = func(first, changed bool) { told = append(told, fmt.Sprint(first, changed)) }
	for _, step := range []struct {
		change func(*Env)
		want   string // MTU and subnet in the file; empty: there is none
		told   []string
	}{
		{func(e *Env) { e.Network, e.IPMasq = sample.Network, true }, "", nil},
		{func(e *Env) { e.Subnet = sample.Subnet }, "", nil},
		{func(e *Env) { e.MTU = 1450 }, "1450 10.42.7.1/24", []string{"true true"}},
		{func(e *Env) {}, "1450 10.42.7.1/24", nil}, // another program removed it
		{func(e *Env) { e.MTU = 1400 }, "1400 10.42.7.1/24", []string{"false true"}},
		{func(e *Env) { e.Subnet = netip.MustParsePrefix("10.42.8.0/24") }, "1400 10.42.8.1/24", []string{"false true"}},
	} {
		os.Remove(path)
		told = nil
		k.Update(step.change)
		k.sync()
		var mtu, subnet string
		b, _ := os.ReadFile(path)
		for line := range strings.Lines(string(b)) {
			switch key, value := assignment(line); key {
			case "FLANNEL_MTU":
				mtu = value
			case "FLANNEL_SUBNET":
				subnet = value
			}
		}
		if got := strings.TrimSpace(mtu + " " + subnet); got != step.want || !slices.Equal(told, step.told) {
			t.Errorf("the file has %q, told %q; want %q, %q", got, told, step.want, step.told)
		}
	}
	if len(conditions.Current()) > 0 {
		t.Errorf("conditions %v", conditions.Current())
	}
}

// TestSubnetFileThatCannotBeWritten is a condition until it can, and so is the claim.
func TestSubnetFileThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	if err := os.Mkdir(path, 0o755); err != nil { // which no file takes the place of
		t.Fatal(err)
	}
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	k := NewKeeper(path, conditions, slog.New(slog.DiscardHandler))
	k.onChange = func(bool, bool) {}
	k.Update(func(e *Env) { *e = sample })
	if pause, fight := k.sync(); pause != retryInterval || fight || !conditions.Has(fileCondition) {
		t.Errorf("again after %v, fight %t, conditions %v", pause, fight, conditions.Current())
	}
	if err := os.Mkdir(ClaimPath(path), 0o755); err != nil {
		t.Fatal(err)
	}
	k.Remember(lease.Claim{Subnets: lease.SubnetsOf(sample.Subnet)})
	if !conditions.Has(claimCondition) {
		t.Errorf("conditions %v", conditions.Current())
	}
	if err := errors.Join(os.Remove(path), os.Remove(ClaimPath(path))); err != nil {
		t.Fatal(err)
	}
	if pause, _ := k.sync(); pause != resync || len(conditions.Current()) > 0 {
		t.Errorf("again after %v, conditions %v", pause, conditions.Current())
	}
	if c, err := ReadClaim(path); err != nil || c.Subnets.V4() != sample.Subnet {
		t.Errorf("claim %+v, %v", c, err)
	}
}
