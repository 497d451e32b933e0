// Package store finds the etcd, and of its two APIs the one, that the network is kept in, and says
// what keeps this host from using it, with the command that mends it.
//
// It decides by what is in the stores; what leases mean is for package subnet. Invariant: a store
// that may hold this host's network is waited for; a host does not change its store because
// another one answered first.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/srv"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/etcdv3"
)

// API is the one of etcd's that the network is kept in. On one server they are
// two stores that know nothing of each other.
type API string

// What an API can be.
const (
	APIAuto API = "auto" // whichever holds the network config
	APIv2   API = "v2"
	APIv3   API = "v3"
)

// prefixes are where others keep their network: the original, and the packages
// of Fedora, CentOS and RHEL.
func prefixes() []string { return []string{"/coreos.com/network", "/atomic.io/network"} }

// Client is a registry with connections.
type Client interface {
	registry.Registry
	ConfigKey() string // of the network config, as this API has it
	Reconnect()        // drops connections, for a local address that is gone
	Close()
}

// Store is an etcd, by the APIs that may be meant, the preferred first. As long
// as it only reads the config, it is open which one it will be.
type Store struct {
	options    etcd.Options
	host       Identity
	log        *slog.Logger
	conditions *condition.List
	stats      *stats
	apis       []API
	regs       []Client
	chosen     choice
	waited     int // how often in a row it could not be told which one that is

	looks pace.Pace // for a config elsewhere
	found string    // where there is one, as of the last look
}

// Identity is by what a host finds the store that it belongs to.
type Identity struct {
	Last API                    // of its last run; empty if there was none
	Owns func(lease.Lease) bool // whether a lease is this host's
}

// Resolve finds the endpoints of a domain by its SRV records (RFC 2782), as etcd's
// own clients do. It waits for a name server that is away.
func Resolve(ctx context.Context, domain string, log *slog.Logger, conditions *condition.List) ([]string, error) {
	const id = "etcd-srv"
	for {
		found, err := srv.GetClient("etcd-client", domain, "")
		if err == nil {
			conditions.End(id)
			log.Info("found etcd by its SRV records", "domain", domain, "endpoints", strings.Join(found.Endpoints, ","))
			return found.Endpoints, nil
		}
		conditions.Set(condition.Condition{
			ID: id, Text: "cannot find etcd by SRV records, trying again", Fields: []any{"domain", domain, "err", err},
		})
		if err := pace.Sleep(ctx, storeRetry); err != nil {
			return nil, err
		}
	}
}

// storeRetry is the time between attempts to find etcd.
const storeRetry = 2 * time.Second

// Open makes the clients. It does no I/O but for reading the TLS files.
func Open(o etcd.Options, api API, host Identity, log *slog.Logger, conditions *condition.List) (*Store, error) {
	o.OnFiles = func(err error) { noteFiles(conditions, err) }
	s := &Store{
		options: o, host: host, log: log, conditions: conditions, stats: &stats{calls: map[Call]uint64{}},
		apis: []API{APIv3, APIv2}, looks: pace.Pace{Initial: 5 * time.Second, Max: time.Minute},
	}
	if api != APIAuto {
		s.apis = []API{api}
	}
	for _, api := range s.apis {
		reg, err := open(o, api)
		if err != nil {
			s.Close()
			return nil, err
		}
		s.regs = append(s.regs, reg)
	}
	return s, nil
}

// noteFiles begins or ends the condition that the TLS files cannot be read again.
func noteFiles(conditions *condition.List, err error) {
	const id = "etcd-files"
	if err == nil {
		conditions.End(id)
		return
	}
	conditions.Set(condition.Condition{
		ID: id, Text: "cannot read the TLS files for etcd again, using those read before",
		Fields: []any{"err", err},
	})
}

func open(o etcd.Options, api API) (Client, error) {
	if api == APIv2 {
		return etcdv2.New(o)
	}
	return etcdv3.New(o)
}

// Close ends all connections.
func (s *Store) Close() {
	for _, r := range s.regs {
		r.Close()
	}
}

// answer is what one API says of the config.
type answer struct {
	raw []byte
	err error
}

func (a answer) missing() bool { return errors.Is(a.err, registry.ErrNoConfig) }

// there reports whether there is a config, be it one that nobody can use.
func (a answer) there() bool { return a.err == nil || errors.Is(a.err, registry.ErrLongConfig) }

// silent reports whether there may be a config all the same.
func (a answer) silent() bool {
	return !a.there() && !a.missing() && !errors.Is(a.err, registry.ErrNoAPI)
}

// mostWaits bounds how often a store is waited for that does not say whether it has a config,
// while the other one has.
const mostWaits = 2

// Config asks every API for the network config. If one has it, that is the network; if both
// have, it is the one that decide finds. An API without an answer may have one, so it is
// waited for, without end if this host's last run was there.
func (s *Store) Config(ctx context.Context) (raw []byte, err error) {
	answers, last := s.ask(ctx), slices.Index(s.apis, s.host.Last)
	var have []int
	defer func() {
		for i, a := range answers {
			switch access := s.access(i); {
			case err == nil && i != s.chosen.store:
				access.forget()
			case err == nil || len(have) == 0 || i == last: // else what it refuses does not matter
				access.note(ctx, OpConfig, a.err)
			}
		}
	}()
	var silent, other error
	for i, a := range answers {
		switch {
		case a.there():
			have = append(have, i)
		case a.silent() && silent == nil:
			silent = a.err
		case !a.missing():
			other = a.err
		}
	}
	switch {
	case last >= 0 && answers[last].silent():
		return nil, answers[last].err
	case len(have) == 0 && !slices.ContainsFunc(answers, answer.missing):
		return nil, cmp.Or(silent, other)
	case len(have) == 0:
		s.waited = 0
		return nil, s.absent(ctx, answers)
	case len(have) == 2:
		found, failed, err := s.evidence(ctx)
		if err != nil && (failed == last || s.wait()) {
			return nil, err
		}
		s.chosen = decide(found, last)
	case silent != nil && have[0] != last && s.wait():
		return nil, silent
	default:
		s.chosen = choice{store: have[0], why: "the network config is there"}
	}
	return answers[s.chosen.store].raw, answers[s.chosen.store].err
}

// access returns an API as one whose refusals are conditions.
func (s *Store) access(i int) Registry {
	return Registry{s.regs[i], s.apis[i], s.options, s.conditions, s.stats}
}

// wait reports whether to go on waiting for a store that gives no answer.
func (s *Store) wait() bool {
	s.waited++
	return s.waited <= mostWaits
}

// evidence is how many leases a store holds: for its config to be that of a living network.
// Reservations never expire, so they may be of one that is no more.
type evidence struct{ leases, reservations, ownLeases, ownReservations int }

func (e evidence) any() bool { return e.leases+e.reservations > 0 }

// evidence looks at the leases in each of two stores. One that cannot be listed has none, and
// the error.
func (s *Store) evidence(ctx context.Context) (found [2]evidence, failed int, err error) {
	for i := range s.regs {
		listing, lerr := s.access(i).List(ctx)
		if lerr != nil {
			failed, err = i, lerr
		}
		for _, l := range listing.Leases {
			all, own := &found[i].leases, &found[i].ownLeases
			if l.Reservation() {
				all, own = &found[i].reservations, &found[i].ownReservations
			}
			*all++
			if s.host.Owns(l) {
				*own++
			}
		}
	}
	return found, failed, err
}

// choice is the store that the network is kept in.
type choice struct {
	store int // its index
	why   string
	doubt bool // the other may be meant as well
}

// decide chooses between two stores that both hold a config: by the first of these that is
// so of one of them only. last is that of the last run, -1 for none.
func decide(stores [2]evidence, last int) choice {
	doubt := stores[0].any() && stores[1].any()
	for _, sign := range []struct {
		why string
		is  func(i int, e evidence) bool
	}{
		{"this host's lease is there", func(_ int, e evidence) bool { return e.ownLeases > 0 }},
		{"hosts have leases there", func(_ int, e evidence) bool { return e.leases > 0 }},
		{"this host was there before", func(i int, _ evidence) bool { return i == last }},
		{"this host's reservation is there", func(_ int, e evidence) bool { return e.ownReservations > 0 }},
		{"hosts have reservations there", func(_ int, e evidence) bool { return e.reservations > 0 }},
	} {
		if first, second := sign.is(0, stores[0]), sign.is(1, stores[1]); first != second {
			i := 0
			if second {
				i = 1
			}
			return choice{i, sign.why, doubt}
		}
	}
	return choice{0, "nothing tells which is meant", true}
}

func (s *Store) ask(ctx context.Context) []answer {
	answers := make([]answer, len(s.regs))
	var all sync.WaitGroup
	for i, r := range s.regs {
		all.Go(func() { answers[i].raw, answers[i].err = r.Config(ctx) })
	}
	all.Wait()
	return answers
}

// Registry returns the API that was chosen, says so when there was a choice, and closes the
// other one.
func (s *Store) Registry() Registry {
	c, i := s.chosen, s.chosen.store
	reg, api := s.access(i), s.apis[i]
	if len(s.regs) > 1 {
		s.log.Info("chose the store that the network is kept in", "store", api, "key", reg.ConfigKey(), "reason", c.why)
		if c.doubt {
			s.log.Warn("the other store has a network under this prefix too: delete its config, or set -etcd-api on all hosts",
				"store", s.apis[1-i], "key", s.regs[1-i].ConfigKey(), "reason", c.why)
		}
		s.regs[1-i].Close()
	}
	s.regs, s.apis, s.chosen.store = []Client{s.regs[i]}, []API{api}, 0
	return reg
}

// absentError is that of a server without a network config.
type absentError struct {
	error
	commands []string
}

func (e *absentError) Unwrap() error { return e.error }

// Commands returns how to make the config, in each API that answers.
func (e *absentError) Commands() []string { return e.commands }

// absent says how to make the config on this server, and where else there is
// one.
func (s *Store) absent(ctx context.Context, answers []answer) error {
	var e absentError
	for i, a := range answers {
		if !a.missing() {
			continue
		}
		if e.error == nil {
			e.error = a.err
		}
		verb := "put"
		if s.apis[i] == APIv2 {
			verb = "set"
		}
		e.commands = append(e.commands, etcdctl(s.options, s.apis[i], verb, s.regs[i].ConfigKey(), sampleConfig))
	}
	if now := time.Now(); s.looks.Delay(now) == 0 {
		s.looks.Turn(now)
		s.found = s.elsewhere(ctx)
	}
	if s.found != "" {
		e.error = fmt.Errorf("%w; there is one at %s (-etcd-prefix, -etcd-api)", e.error, s.found)
	}
	return &e
}

// sampleConfig is the network config that is suggested.
const sampleConfig = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

// elsewhere looks for a config under the other usual prefixes, and under ours
// in an API that was not asked for, or with or without the leading slash, which v3
// tells apart.
func (s *Store) elsewhere(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, storeRetry)
	defer cancel()
	var found []string
	for _, api := range []API{APIv3, APIv2} {
		for _, prefix := range append([]string{s.options.Prefix, otherSlash(s.options.Prefix)}, prefixes()...) {
			o := s.options
			o.Prefix = prefix
			reg, err := open(o, api)
			if err != nil {
				continue
			}
			key := reg.ConfigKey()
			if !s.asked(api, key) {
				if _, err := reg.Config(ctx); err == nil {
					found = append(found, fmt.Sprintf("%s in the %s API", key, api))
				}
			}
			reg.Close()
		}
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), ", ")
}

// asked reports whether a key is the one that is read in an API anyway.
func (s *Store) asked(api API, key string) bool {
	i := slices.Index(s.apis, api)
	return i >= 0 && s.regs[i].ConfigKey() == key
}

// otherSlash returns a prefix with the leading slash that it lacks, or without the one it has.
func otherSlash(prefix string) string {
	if rest, has := strings.CutPrefix(prefix, "/"); has {
		return rest
	}
	return "/" + prefix
}
