package filter

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/logs"
	"flanneld/pkg/netconf"
)

var (
	four   = firewall.Overlay{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24")}
	six    = firewall.Overlay{Network: netip.MustParsePrefix("fd42::/48"), Subnet: netip.MustParsePrefix("fd42:0:0:7::/64")}
	other6 = firewall.Overlay{Network: netip.MustParsePrefix("fd43::/48"), Subnet: netip.MustParsePrefix("fd43:0:0:7::/64")}
	old    = firewall.Overlay{Network: netip.MustParsePrefix("10.99.0.0/16"), Subnet: netip.MustParsePrefix("10.99.7.0/24")}
)

const notInstalled = firewall.AbsentError("iptables is not installed")

// bed is what the models of hosts have in common. Its mutex guards the rest of a model.
type bed struct {
	t    *testing.T
	log  *logs.Buffer
	list *condition.List
	mu   sync.Mutex
	// repairs is what Repaired was called with.
	repairs []string
}

func newBed(t *testing.T) bed {
	log := new(logs.Buffer)
	return bed{t: t, log: log, list: condition.NewList(logTo(log))}
}

func logTo(b *logs.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// repaired is the function Repaired of the host's configuration.
func (b *bed) repaired(what, example string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.repairs = append(b.repairs, what+", "+example)
}

// begin runs a function within a test's bubble until the test ends.
func (b *bed) begin(run func(context.Context)) {
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan struct{})
	go func() {
		run(ctx)
		close(ended)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// set changes the host while nothing runs. It locks, because a goroutine that a timer wakes later is
// not synchronized with this one.
func (b *bed) set(change func()) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	change()
	b.mu.Unlock()
}

// after lets time pass.
func (b *bed) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wrong fails the test unless a condition is there, or is not.
func (b *bed) wrong(id string, want bool) {
	b.t.Helper()
	if synctest.Wait(); b.list.Has(id) != want {
		b.t.Errorf("condition %s: %t, want %t\n%s", id, !want, want, b.log)
	}
}

// said fails the test unless the log has this number of lines with all texts.
func (b *bed) said(times int, texts ...string) {
	b.t.Helper()
	if n := len(logs.Find(b.log.String(), texts...)); n != times {
		b.t.Errorf("said %q %d times, want %d:\n%s", texts, n, times, b.log)
	}
}

// modelHost is a model of a host: its rules in each place, and the behaviour of its tools.
type modelHost struct {
	bed
	*Filter
	places map[firewall.Place]map[firewall.Family]firewall.Ruleset

	iptables, compat, legacy, nft *keeper
}

// keeper is a tool that stores whole rulesets. Tests set its fields before the filter runs, or by
// set.
type keeper struct {
	host     *modelHost
	traits   firewall.Traits
	err      error            // of each Sync
	took     time.Duration    // by each Sync
	hangs    bool             // until the context ends
	syncs    []time.Time      // when each Sync began
	owners   []firewall.Owner // of each Sync
	watch    chan struct{}    // signals of others' changes
	unseen   error            // why these cannot be watched
	tables   []string         // that the kernel has
	unread   error            // why these cannot be read
	barriers func(firewall.Packet) ([]firewall.Barrier, error)
}

func (k *keeper) Traits(firewall.Family) firewall.Traits {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	return k.traits
}

func (k *keeper) Sync(ctx context.Context, r firewall.Ruleset) ([]string, error) {
	k.host.mu.Lock()
	k.syncs, k.owners = append(k.syncs, time.Now()), append(k.owners, r.Owner)
	err, took, hangs, place := k.err, k.took, k.hangs, k.traits.Place
	k.host.mu.Unlock()
	if hangs {
		took = 24 * time.Hour
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(took):
	}
	if err != nil {
		return nil, err
	}
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	r, change := k.difference(r)
	if change == "" {
		return nil, nil
	}
	if len(r.Chains) == 0 {
		delete(k.host.places[place], r.Family)
	} else {
		if k.host.places[place] == nil {
			k.host.places[place] = map[firewall.Family]firewall.Ruleset{}
		}
		k.host.places[place][r.Family] = r
	}
	return []string{change}, nil
}

// difference returns what is stored of a ruleset, and a description of the change that this is.
func (k *keeper) difference(r firewall.Ruleset) (firewall.Ruleset, string) {
	r.Owner = firewall.Owner{Network: r.Owner.Network}
	if r.HeldIn != firewall.Nowhere {
		r.Chains = firewall.Accepts(r.Chains)
	}
	before, there := k.host.places[k.traits.Place][r.Family]
	switch {
	case len(r.Chains) == 0 && !there || reflect.DeepEqual(before, r):
		return r, ""
	case len(r.Chains) == 0:
		return r, fmt.Sprintf("removed all of family %d", r.Family)
	}
	return r, fmt.Sprintf("put %d chains", len(r.Chains))
}

func (k *keeper) Plan(_ context.Context, r firewall.Ruleset) ([]firewall.Change, error) {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	_, change := k.difference(r)
	if change == "" {
		return nil, nil
	}
	return []firewall.Change{{Object: k.traits.Name, Command: k.traits.Name + ": " + change}}, nil
}

func (k *keeper) Watch(ctx context.Context) (<-chan struct{}, error) {
	k.host.mu.Lock()
	in, err := k.watch, k.unseen
	k.host.mu.Unlock()
	if in == nil || err != nil {
		return nil, err
	}
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case _, open := <-in:
				if !open {
					return
				}
			}
			select {
			case <-ctx.Done():
			case out <- struct{}{}:
			}
		}
	}()
	return out, nil
}

func (k *keeper) Tables(firewall.Family) ([]string, error) {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	return k.tables, k.unread
}

func (k *keeper) Barriers(_ context.Context, p firewall.Packet) ([]firewall.Barrier, error) {
	k.host.mu.Lock()
	f := k.barriers
	k.host.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	return f(p)
}

// allVacant is a Vacate where no other daemon runs.
func allVacant(networks []netip.Prefix) (vacant []netip.Prefix, release func()) {
	return networks, func() {}
}

// onHost runs a test in a bubble with a host.
func onHost(t *testing.T, c netconf.Choice, test func(*testing.T, *modelHost)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newHost(t, c)) })
}

// newHost returns a host with iptables of the nft variant and nftables, both well.
func newHost(t *testing.T, c netconf.Choice, change ...func(*Config)) *modelHost {
	t.Helper()
	h := &modelHost{bed: newBed(t), places: map[firewall.Place]map[firewall.Family]firewall.Ruleset{}}
	tool := func(name string, p firewall.Place, gap, resync time.Duration) *keeper {
		return &keeper{host: h, traits: firewall.Traits{Name: name, Place: p, Gap: gap, Resync: resync}, watch: make(chan struct{})}
	}
	h.iptables = tool("iptables", firewall.Compat, 500*time.Millisecond, 5*time.Second)
	h.iptables.traits.Version = "iptables v1.8.9 (nf_tables)"
	h.compat = tool("iptables-nft", firewall.Compat, 500*time.Millisecond, 5*time.Second)
	h.legacy = tool("iptables-legacy", firewall.Legacy, 500*time.Millisecond, 5*time.Second)
	h.nft = tool("nftables", firewall.Native, 0, time.Minute)
	cfg := Config{
		Options:    Options{Masquerade: true, Forward: true},
		Keepers:    Keepers{IPTables: h.iptables, Compat: h.compat, Legacy: h.legacy, NFTables: h.nft},
		Choice:     c,
		Vacate:     allVacant,
		Firewalld:  func(context.Context) (Firewalld, error) { return nil, fmt.Errorf("no bus") },
		Repaired:   h.repaired,
		Conditions: h.list,
		Log:        logTo(h.log),
	}
	for _, f := range change {
		f(&cfg)
	}
	h.Filter = New(cfg)
	return h
}

// start sets the network and runs the filter until nothing more is to be done now.
func (h *modelHost) start() {
	h.Set([]Input{{Overlay: four}})
	h.begin(h.Run)
	<-h.Tried()
	synctest.Wait()
}

// holds fails the test unless a place contains the rules, only accepts, or nothing.
func (h *modelHost) holds(p firewall.Place, want string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	r, there := h.places[p][firewall.IPv4]
	got := "rules"
	if !there {
		got = "nothing"
	} else if r.HeldIn != firewall.Nowhere {
		got = "accepts"
	}
	if got != want {
		h.t.Errorf("place %d has %s, want %s\n%s", p, got, want, h.log)
	}
}

// begun returns when each Sync of a keeper began.
func (k *keeper) begun() []time.Time {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	return slices.Clone(k.syncs)
}

// intervals returns the times between the Syncs of a keeper.
func (k *keeper) intervals() (all []time.Duration) {
	times := k.begun()
	for i := 1; i < len(times); i++ {
		all = append(all, times[i].Sub(times[i-1]))
	}
	return all
}
