// Package registrytest tests the contract of registry.Registry. Every implementation runs it. A
// difference between two of them is a bug in one, or a missing test here.
//
// A Harness does to a store what operators, other hosts and expiry do, without the registry.
package registrytest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Harness is an empty registry and direct access to its store. Keys are the last elements of the
// keys below subnets/.
type Harness struct {
	Registry      registry.Registry
	SetConfig     func(value string)
	Put           func(key, value string, ttl time.Duration) // unconditional; ttl 0 is forever
	Remove        func(key string)
	RemoveAll     func() // all leases at once
	ForgetHistory func() // drop the history of events
}

// Run runs the contract; make returns a new Harness for each part.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	for _, part := range []struct {
		name string
		run  func(*suite)
	}{
		{"config", (*suite).config},
		{"write config", (*suite).writeConfig},
		{"list empty", (*suite).listEmpty},
		{"list", (*suite).list},
		{"list bad entries", (*suite).listBad},
		{"list 10000", (*suite).listMany},
		{"get", (*suite).read},
		{"create renew delete", (*suite).lifecycle},
		{"leaving", (*suite).leaving},
		{"conflicts", (*suite).conflicts},
		{"reservation", (*suite).reservation},
		{"pre-assigned", (*suite).preAssigned},
		{"dual-stack key", (*suite).dualStack},
		{"16 creators", (*suite).creators},
		{"ttl", (*suite).ttl},
		{"watch", (*suite).watch},
		{"watch from index", (*suite).watchFromIndex},
		{"watch ends with context", (*suite).watchContext},
		{"watch bad entries", (*suite).watchBad},
		{"watch expiry", (*suite).watchExpiry},
		{"watch history forgotten", (*suite).historyForgotten},
		{"watch all deleted", (*suite).allDeleted},
	} {
		t.Run(part.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			t.Cleanup(cancel)
			part.run(&suite{T: t, Harness: make(t), ctx: ctx})
		})
	}
}

type suite struct {
	*testing.T
	Harness
	ctx context.Context
}

const ttl = time.Hour

// subnets returns subnets that differ by n.
func subnets(n int) lease.Subnets { return ipv4(fmt.Sprintf("10.42.%d.0/24", n)) }

func ipv4(subnet string) lease.Subnets { return lease.SubnetsOf(netip.MustParsePrefix(subnet)) }

// attrs returns attributes that differ by n.
func attrs(n int) lease.Attrs {
	return lease.Attrs{
		PublicIP:    netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}),
		BackendType: "vxlan",
		BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:%02x:%02x"}`, n>>8, n&255),
	}
}

func (s *suite) value(n int) string {
	s.Helper()
	b, err := attrs(n).Encode()
	s.must(err)
	return string(b)
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Fatalf("error %v, want %v", err, target)
	}
}

// errorOf returns the error of a call.
func errorOf[T any](_ T, err error) error { return err }

func (s *suite) create(subnets lease.Subnets, a lease.Attrs, ttl time.Duration) lease.Lease {
	s.Helper()
	l, err := s.Registry.Create(s.ctx, subnets, a, ttl)
	s.must(err)
	return l
}

func (s *suite) update(prev lease.Lease, a lease.Attrs, ttl time.Duration) lease.Lease {
	s.Helper()
	l, err := s.Registry.Update(s.ctx, prev, a, ttl)
	s.must(err)
	return l
}

func (s *suite) get(subnets lease.Subnets) registry.Event {
	s.Helper()
	ev, err := s.Registry.Get(s.ctx, subnets)
	s.must(err)
	return ev
}

func (s *suite) listing() registry.Listing {
	s.Helper()
	l, err := s.Registry.List(s.ctx)
	s.must(err)
	return l
}

// only returns the only lease.
func (s *suite) only() lease.Lease {
	s.Helper()
	l := s.listing()
	if len(l.Leases) != 1 {
		s.Fatalf("listing %+v, want one lease", l)
	}
	return l.Leases[0]
}

// events waits for n events after index.
func (s *suite) events(index uint64, n int) ([]registry.Event, uint64) {
	s.Helper()
	return Events(s.T, s.Registry, index, n)
}

// Events waits for n events after an index. There must be no others.
func Events(t testing.TB, r registry.Registry, index uint64, n int) ([]registry.Event, uint64) {
	t.Helper()
	var all []registry.Event
	for len(all) < n {
		events, next, err := r.Watch(Timeout(t), index)
		if err != nil {
			t.Fatalf("after %+v: %v", all, err)
		}
		if next < index {
			t.Fatalf("watch after %d went back to %d", index, next)
		}
		all, index = append(all, events...), next
	}
	if len(all) > n {
		t.Fatalf("%d events, want %d: %+v", len(all), n, all)
	}
	return all, index
}

func (s *suite) config() {
	s.want(errorOf(s.Registry.Config(s.ctx)), registry.ErrNoConfig)
	for _, v := range []string{`{"Network":"10.42.0.0/16"}`, "", "not JSON\x00ü&=%"} {
		s.SetConfig(v)
		got, err := s.Registry.Config(s.ctx)
		s.must(err)
		if string(got) != v {
			s.Errorf("config %q, want %q", got, v)
		}
	}
}

// readConfig reads the config, which must be the wanted one, and returns its revision.
func (s *suite) readConfig(want string) uint64 {
	s.Helper()
	raw, revision, err := s.Registry.ReadConfig(s.ctx)
	s.must(err)
	if string(raw) != want || revision == 0 {
		s.Errorf("config %q at revision %d, want %q", raw, revision, want)
	}
	return revision
}

// writeConfig checks that the config is written only if it is the one that was read.
func (s *suite) writeConfig() {
	if _, revision, err := s.Registry.ReadConfig(s.ctx); revision != 0 || !errors.Is(err, registry.ErrNoConfig) {
		s.Errorf("revision %d, %v", revision, err)
	}
	s.want(s.Registry.WriteConfig(s.ctx, []byte("0"), 99), registry.ErrConfigChanged)
	s.must(s.Registry.WriteConfig(s.ctx, []byte("1"), 0))
	first := s.readConfig("1")
	s.want(s.Registry.WriteConfig(s.ctx, []byte("2"), 0), registry.ErrConfigChanged)
	s.must(s.Registry.WriteConfig(s.ctx, []byte("ü&=%?\n\x00"), first))
	second := s.readConfig("ü&=%?\n\x00")
	s.want(s.Registry.WriteConfig(s.ctx, []byte("3"), first), registry.ErrConfigChanged)
	s.SetConfig("of an operator")
	s.want(s.Registry.WriteConfig(s.ctx, []byte("3"), second), registry.ErrConfigChanged)
	third := s.readConfig("of an operator")
	var winners sync.WaitGroup
	var won atomic.Int32
	for i := range 8 {
		winners.Go(func() {
			switch err := s.Registry.WriteConfig(s.ctx, fmt.Append(nil, i), third); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, registry.ErrConfigChanged):
				s.Error(err)
			}
		})
	}
	if winners.Wait(); won.Load() != 1 {
		s.Errorf("%d of 8 concurrent writes succeeded", won.Load())
	}
	s.SetConfig(strings.Repeat("x", registry.MaxValue+1))
	_, long, err := s.Registry.ReadConfig(s.ctx)
	s.want(err, registry.ErrLongConfig)
	s.must(s.Registry.WriteConfig(s.ctx, []byte("short"), long))
	s.readConfig("short")
}

func (s *suite) listEmpty() {
	l := s.listing()
	if len(l.Leases)+len(l.Invalid) != 0 {
		s.Errorf("listing %+v of an empty registry", l)
	}
	s.create(subnets(7), attrs(1), ttl)
	events, _ := s.events(l.Index, 1)
	if events[0].Lease.Subnets != subnets(7) {
		s.Errorf("event %+v", events[0])
	}
}

func (s *suite) list() {
	for i := range 20 {
		s.create(subnets(i), attrs(i), ttl)
	}
	l := s.listing()
	slices.SortFunc(l.Leases, func(a, b lease.Lease) int { return a.Subnets.Compare(b.Subnets) })
	for i, got := range l.Leases {
		if got.Subnets != subnets(i) || got.Attrs != attrs(i) || got.Revision == 0 || got.Created != got.Revision {
			s.Errorf("lease %d is %+v", i, got)
		}
	}
	if len(l.Leases) != 20 || len(l.Invalid) != 0 {
		s.Errorf("%d leases, %d bad", len(l.Leases), len(l.Invalid))
	}
}

// badValues are keys and values of entries that are no leases; true if the key is valid.
func badValues() map[string]struct {
	value string
	good  bool
} {
	type bad = struct {
		value string
		good  bool
	}
	huge := make([]byte, 1<<20)
	for i := range huge {
		huge[i] = 'x'
	}
	return map[string]bad{
		"10.42.1.0-24":   {"", true},
		"10.42.2.0-24":   {"{", true},
		"10.42.3.0-24":   {"null", true},
		"10.42.4.0-24":   {`{"PublicIP":"fe80::1"}`, true},
		"10.42.5.0-24":   {string(huge), true},
		"10.42.6.0-33":   {`{"PublicIP":"198.51.100.1"}`, false},
		"10.42.6.1-24":   {`{"PublicIP":"198.51.100.1"}`, false},
		"operator notes": {"call me", false},
		"10.42.6.0_24":   {`{"PublicIP":"198.51.100.1"}`, false},
		"ü&=%?#.x":       {"x", false},

		"10.42.6.0-24&fd42:0:0:6::-64": {"{", true},
		"10.42.6.0-24&fd42::1-64":      {`{"PublicIP":"198.51.100.1"}`, false},
		"10.42.6.0-24&x":               {`{"PublicIP":"198.51.100.1"}`, false},
	}
}

func (s *suite) listBad() {
	for key, b := range badValues() {
		s.Put(key, b.value, 0)
	}
	s.create(subnets(7), attrs(7), ttl)
	if got := s.only(); got.Attrs != attrs(7) {
		s.Errorf("lease %+v", got)
	}
	found := s.listing().Invalid
	if len(found) != len(badValues()) {
		s.Errorf("%d bad entries, want %d", len(found), len(badValues()))
	}
	for _, b := range found {
		given, ok := badValues()[b.Key]
		if !ok || b.Err == nil || b.Revision == 0 || b.Subnets.IsValid() != given.good {
			s.Errorf("bad entry %+v", b)
		}
		if b.Err != nil && len(b.Err.Error()) > 300 {
			s.Errorf("key %s: message of %d bytes", b.Key, len(b.Err.Error()))
		}
	}
}

func (s *suite) listMany() {
	if testing.Short() {
		s.Skip("it writes much: not with -short")
	}
	const n = 10000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				p := lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
				if i%10 != 0 {
					s.Put(lease.Key(p), s.value(i), 0)
				} else if _, err := s.Registry.Create(s.ctx, p, attrs(i), ttl); err != nil {
					s.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := len(s.listing().Leases); got != n {
		s.Errorf("%d leases, want %d", got, n)
	}
	s.listOneMoment()
}

// listOneMoment checks that a listing is of one moment, however long it takes. Of two leases at its
// ends, the first one is always written first, so the other one is never ahead.
func (s *suite) listOneMoment() {
	first, last := ipv4("1.0.0.0/24"), ipv4("99.0.0.0/24")
	stop, stopped := make(chan struct{}), make(chan struct{})
	write := func(i int) {
		s.Put(lease.Key(first), s.value(i), 0)
		s.Put(lease.Key(last), s.value(i), 0)
	}
	write(0)
	go func() {
		defer close(stopped)
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				write(i)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	moments := map[netip.Addr]bool{}
	for range 5 {
		var a, b uint16
		for _, l := range s.listing().Leases {
			ip := l.PublicIP.As4()
			switch l.Subnets {
			case first:
				a = binary.BigEndian.Uint16(ip[2:])
				moments[l.PublicIP] = true
			case last:
				b = binary.BigEndian.Uint16(ip[2:])
			}
		}
		if a != b && a != b+1 {
			s.Errorf("the first lease is of moment %d, the last of %d", a, b)
		}
	}
	if len(moments) < 2 {
		s.Error("nothing was written while the leases were listed")
	}
}

func (s *suite) read() {
	ev := s.get(subnets(7))
	if !ev.Deleted || ev.Lease.Subnets != subnets(7) {
		s.Errorf("missing key: %+v", ev)
	}
	l := s.create(subnets(7), attrs(1), ttl)
	ev = s.get(subnets(7))
	if ev.Deleted || ev.Invalid != nil || !ev.Lease.SameAs(l) || ev.Lease.Revision != l.Revision {
		s.Errorf("got %+v, want %+v", ev, l)
	}
	s.Put(lease.Key(subnets(7)), "nonsense", ttl)
	ev = s.get(subnets(7))
	if ev.Invalid == nil || ev.Invalid.Subnets != subnets(7) || ev.Invalid.Revision <= l.Revision {
		s.Fatalf("bad value: %+v", ev)
	}
	// The revision of an invalid entry must be usable to correct it.
	l = s.update(lease.Lease{Subnets: subnets(7), Revision: ev.Invalid.Revision}, attrs(1), ttl)
	if got := s.only(); !got.SameAs(l) {
		s.Errorf("got %+v, want %+v", got, l)
	}
}
