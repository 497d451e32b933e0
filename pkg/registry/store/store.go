// Package store finds the etcd, and the one of its two APIs, that the network is kept in. It
// reports what keeps this host from using it, with the command that repairs it.
//
// It decides by the content of the stores; leases are interpreted by package subnet. Invariant:
// flanneld waits for a store that may have this host's network. A host does not change its store
// because another one answered first.
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

// API is the API of etcd that the network is kept in. The two APIs of a server have separate
// stores.
type API string

// Values of API.
const (
	APIAuto API = "auto" // the one with the network config
	APIv2   API = "v2"
	APIv3   API = "v3"
)

// Prefixes returns the usual prefixes: of the original, and of the packages of Fedora, CentOS and RHEL.
func Prefixes() []string { return []string{"/coreos.com/network", "/atomic.io/network"} }

// Client is a registry with connections.
type Client interface {
	registry.Registry
	ConfigKey() string // key of the network config in this API
	Reconnect()        // closes connections, because the local address has changed
	Close()
}

// Store is an etcd with the APIs that may be used, the preferred one first. The API is chosen when
// the config is read.
type Store struct {
	options    etcd.Options
	host       Identity
	log        *slog.Logger
	conditions *condition.List
	stats      *stats
	apis       []API
	regs       []Client
	chosen     choice
	answers    []answer // of the last reading of the config
	waited     int      // number of readings in a row without a choice

	looks pace.Pace // pace of looking for a config elsewhere
	found string    // where there is one, by the last look
}

// Identity identifies the store that a host belongs to.
type Identity struct {
	Last API                    // of the last run; empty if there was none
	Owns func(lease.Lease) bool // whether a lease is this host's
}

// Resolve finds the endpoints of a domain by its SRV records (RFC 2782), as etcd's own clients do.
// It waits for a name server that is away.
func Resolve(ctx context.Context, domain string, log *slog.Logger, conditions *condition.List) ([]string, error) {
	for {
		found, err := srv.GetClient("etcd-client", domain, "")
		conditions.SetError(condition.Condition{
			ID: "etcd-srv", Text: "cannot find etcd by SRV records, will retry", Fields: []any{"domain", domain},
		}, err)
		if err == nil {
			log.Info("found etcd by its SRV records", "domain", domain, "endpoints", strings.Join(found.Endpoints, ","))
			return found.Endpoints, nil
		}
		if err := pace.Sleep(ctx, storeRetry); err != nil {
			return nil, err
		}
	}
}

// storeRetry is the time between attempts to find etcd.
const storeRetry = 2 * time.Second

// Open creates the clients. It does no I/O except for reading the TLS files.
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
	conditions.SetError(condition.Condition{
		ID: "etcd-files", Text: "cannot read the TLS files for etcd again, using those read before",
	}, err)
}

func open(o etcd.Options, api API) (Client, error) {
	if api == APIv2 {
		return etcdv2.New(o)
	}
	return etcdv3.New(o)
}

// Close closes all connections.
func (s *Store) Close() {
	for _, r := range s.regs {
		r.Close()
	}
}

// answer is the answer of one API to a request for the config.
type answer struct {
	raw []byte
	err error
}

func (a answer) missing() bool { return errors.Is(a.err, registry.ErrNoConfig) }

// there reports whether there is a config, valid or not.
func (a answer) there() bool { return a.err == nil || errors.Is(a.err, registry.ErrLongConfig) }

// silent reports whether there may be a config although there was no answer.
func (a answer) silent() bool {
	return !a.there() && !a.missing() && !errors.Is(a.err, registry.ErrNoAPI)
}

// maxWaits is how often a store without an answer is waited for if the other one has a config.
const maxWaits = 2

// Config reads the network config from every API. If one has it, that is the network. If both have
// it, decide chooses. An API without an answer may have a config, so it is waited for, without a
// limit if this host's last run used it.
func (s *Store) Config(ctx context.Context) (raw []byte, err error) {
	answers, last := s.ask(ctx), slices.Index(s.apis, s.host.Last)
	s.answers = answers
	var have []int
	defer func() {
		for i, a := range answers {
			switch access := s.access(i); {
			case err == nil && i != s.chosen.store:
				access.forget()
			case err == nil || len(have) == 0 || i == last: // else its refusal does not matter
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

// findAttempts is how often Find asks for the network config.
const findAttempts = 3

// Find is Config for a caller that does not wait: it asks again a few times while there is no answer.
func (s *Store) Find(ctx context.Context) (raw []byte, err error) {
	for attempt := range findAttempts {
		if attempt > 0 && pace.Sleep(ctx, storeRetry/4) != nil {
			break
		}
		raw, err = s.Config(ctx)
		if answered(err) || errors.Is(err, registry.ErrDenied) {
			break
		}
	}
	return raw, err
}

// Vacant returns the API that a config belongs in if Config has found none: that of this host's
// last run, else the preferred one of those that the server has. If one of them has not answered,
// it may have a config, so its error is returned.
func (s *Store) Vacant() (Registry, error) {
	chosen := -1
	for i, a := range s.answers {
		switch {
		case a.there() || a.silent():
			return Registry{}, fmt.Errorf("the %s API may have a network config: %w", s.apis[i], a.err)
		case a.missing() && (chosen < 0 || s.apis[i] == s.host.Last):
			chosen = i
		}
	}
	if chosen < 0 {
		return Registry{}, registry.ErrNoAPI
	}
	s.chosen = choice{store: chosen, why: "there is no network config"}
	return s.Registry(), nil
}

// access returns an API as a Registry, whose errors are conditions.
func (s *Store) access(i int) Registry {
	return Registry{s.regs[i], s.apis[i], s.options, s.conditions, s.stats}
}

// wait reports whether to continue waiting for a store without an answer.
func (s *Store) wait() bool {
	s.waited++
	return s.waited <= maxWaits
}

// evidence is the number of leases in a store, which shows whether its config is that of a network
// in use. Reservations never expire, so they may be of a network that is no longer used.
type evidence struct{ leases, reservations, ownLeases, ownReservations int }

func (e evidence) any() bool { return e.leases+e.reservations > 0 }

// evidence counts the leases in each of two stores. One that cannot be listed has none, and the
// error.
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
	store int // index of the store
	why   string
	doubt bool // the other one may be meant
}

// decide chooses between two stores that both have a config: by the first of these criteria that is
// true for only one of them. last is the store of the last run, or -1.
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

// Registry returns the chosen API, logs the choice if there was one, and closes the other one.
func (s *Store) Registry() Registry {
	c, i := s.chosen, s.chosen.store
	reg, api := s.access(i), s.apis[i]
	if len(s.regs) > 1 {
		s.log.Info("chose store", "store", api, "key", reg.ConfigKey(), "reason", c.why)
		if c.doubt {
			s.log.Warn("the other store has a network under this prefix too, delete its config or set -etcd-api on all hosts",
				"store", s.apis[1-i], "key", s.regs[1-i].ConfigKey(), "reason", c.why)
		}
		s.regs[1-i].Close()
	}
	s.regs, s.apis, s.chosen.store = []Client{s.regs[i]}, []API{api}, 0
	return reg
}

// absentError is the error of a server without a network config.
type absentError struct {
	error
	commands []string
}

func (e *absentError) Unwrap() error { return e.error }

// Commands returns the commands that create the config in each API that answers. There are none if
// a config is in another place, because that one is probably meant.
func (e *absentError) Commands() []string { return e.commands }

// absent returns the error with the place of another config, or else with the commands that create
// one on this server.
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
		e.commands = append(e.commands, etcdctl(s.options, s.apis[i], verb, s.regs[i].ConfigKey(), SampleConfig))
	}
	if now := time.Now(); s.looks.Delay(now) == 0 {
		s.looks.Turn(now)
		s.found = s.elsewhere(ctx)
	}
	if s.found != "" {
		e.error, e.commands = fmt.Errorf("%w; there is one at %s (-etcd-prefix, -etcd-api)", e.error, s.found), nil
	}
	return &e
}

// SampleConfig is the suggested network config.
const SampleConfig = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

// elsewhere looks for a config under the other usual prefixes, and under the configured one in an
// API that is not used, or with or without the leading slash, which are different in v3.
func (s *Store) elsewhere(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, storeRetry)
	defer cancel()
	var found []string
	for _, api := range []API{APIv3, APIv2} {
		for _, prefix := range append([]string{s.options.Prefix, otherSlash(s.options.Prefix)}, Prefixes()...) {
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

// otherSlash returns a prefix with the missing leading slash, or without the present one.
func otherSlash(prefix string) string {
	if rest, has := strings.CutPrefix(prefix, "/"); has {
		return rest
	}
	return "/" + prefix
}
