package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/srv"

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

// client is a registry with connections.
type client interface {
	registry.Registry
	ConfigKey() string // of the network config, as this API has it
	Reconnect()        // drops connections, for a local address that is gone
	Close()
}

// store is an etcd, by the APIs that may be meant, the preferred first. As long
// as it only reads the config, it is open which one it will be.
type store struct {
	options etcd.Options
	log     *slog.Logger
	apis    []API
	regs    []client
	chosen  client // that held the config
	lone    int    // how often in a row v2 had a config while v3 gave no answer
}

// resolve finds the endpoints of a domain by its SRV records (RFC 2782), as etcd's
// own clients do. It waits for a name server that is away.
func resolve(ctx context.Context, domain string, log *slog.Logger) ([]string, error) {
	for said := ""; ; {
		found, err := srv.GetClient("etcd-client", domain, "")
		if err == nil {
			log.Info("found etcd by its SRV records", "domain", domain, "endpoints", strings.Join(found.Endpoints, ","))
			return found.Endpoints, nil
		}
		if said != err.Error() {
			said = err.Error()
			log.Warn("cannot find etcd by SRV records, trying again", "domain", domain, "err", err)
		}
		timer := time.NewTimer(storeRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

// storeRetry is the time between attempts to find etcd.
const storeRetry = 2 * time.Second

// openStore makes the clients. It does no I/O but for reading the TLS files.
func openStore(o etcd.Options, api API, log *slog.Logger) (*store, error) {
	s := &store{options: o, log: log, apis: []API{APIv3, APIv2}}
	if api != APIAuto {
		s.apis = []API{api}
	}
	for _, api := range s.apis {
		reg, err := open(o, api)
		if err != nil {
			s.close()
			return nil, err
		}
		s.regs = append(s.regs, reg)
	}
	return s, nil
}

func open(o etcd.Options, api API) (client, error) {
	if api == APIv2 {
		return etcdv2.New(o)
	}
	return etcdv3.New(o)
}

// close ends all connections.
func (s *store) close() {
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

// Config asks every API for the network config and gives that of the first one
// that has it. An API without an answer may have one, so it is waited for, unless
// it seems not to exist: etcd 2 has no v3, etcd 3.6 no v2.
func (s *store) Config(ctx context.Context) ([]byte, error) {
	answers := s.ask(ctx)
	var silent []error
	for i, a := range answers {
		switch {
		case a.err == nil && len(silent) > 0 && s.lone < 2:
			s.lone++
			return nil, silent[0]
		case a.err == nil:
			s.choose(i, answers)
			return a.raw, nil
		case !a.missing():
			silent = append(silent, a.err)
		}
	}
	s.lone = 0
	if len(silent) == len(answers) {
		return nil, silent[0]
	}
	return nil, s.absent(ctx, answers)
}

func (s *store) ask(ctx context.Context) []answer {
	answers := make([]answer, len(s.regs))
	var all sync.WaitGroup
	for i, r := range s.regs {
		all.Go(func() { answers[i].raw, answers[i].err = r.Config(ctx) })
	}
	all.Wait()
	return answers
}

// choose settles which API it is, and says so when there was a choice.
func (s *store) choose(i int, answers []answer) {
	s.chosen = s.regs[i]
	if len(s.regs) > 1 {
		s.log.Info("the network is kept in etcd's "+string(s.apis[i])+" API", "key", s.chosen.ConfigKey())
	}
	for j, a := range answers {
		if j != i && a.err == nil {
			s.log.Warn(fmt.Sprintf("there is a network config in etcd's %s API too, which is another network: taking %s; -etcd-api=%[1]s takes the other", s.apis[j], s.apis[i]),
				"key", s.regs[j].ConfigKey())
		}
	}
}

// registry gives the API that was chosen and closes the others.
func (s *store) registry() client {
	for _, r := range s.regs {
		if r != s.chosen {
			r.Close()
		}
	}
	s.regs = []client{s.chosen}
	return s.chosen
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
func (s *store) absent(ctx context.Context, answers []answer) error {
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
	if found := s.elsewhere(ctx); found != "" {
		e.error = fmt.Errorf("%w; there is one at %s (-etcd-prefix, -etcd-api)", e.error, found)
	}
	return &e
}

// sampleConfig is the network config that is suggested.
const sampleConfig = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`

// elsewhere looks for a config under the other usual prefixes, and under ours
// in an API that was not asked for, or with or without the leading slash, which v3
// tells apart.
func (s *store) elsewhere(ctx context.Context) string {
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
func (s *store) asked(api API, key string) bool {
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
