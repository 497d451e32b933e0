package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/store"
)

// Endpoint is what one endpoint of etcd has answered.
type Endpoint struct {
	URL     string
	Err     error  // why it cannot be used, with what to set; nil if it answers
	Version string // of the server
	Cluster string // ID of its cluster; empty if unknown
	// Leader is set if its cluster has a leader, which is known if LeaderKnown is set.
	Leader, LeaderKnown bool
	Date                time.Time // its clock; zero if unknown
	Asked               time.Time // when it was asked, by this host's clock
	Took                time.Duration
	Stores              []Store // one for each API that was asked
}

// Store is one API of an endpoint.
type Store struct {
	API       store.API
	Key       string // of the network config
	Config    []byte
	Err       error // why there is no config
	Leases    []lease.Lease
	Invalid   []registry.InvalidEntry
	LeasesErr error
}

// has reports whether the store has a network config.
func (s Store) has() bool { return s.Err == nil }

// answers reports whether the store answers requests for its keys.
func (s Store) answers() bool {
	return s.Err == nil || errors.Is(s.Err, registry.ErrNoConfig) || errors.Is(s.Err, registry.ErrLongConfig)
}

// knowsConfig reports whether the store says that there is a network config, or that there is none.
func (s Store) knowsConfig() bool { return s.answers() || errors.Is(s.Err, registry.ErrNoAPI) }

// mayUse reports whether a host with a value of -etcd-api may use an API.
func mayUse(setting, api store.API) bool {
	return setting == api || setting != store.APIv2 && setting != store.APIv3
}

// network returns the store that this host's network is kept in, of those that it may use: that of
// the last run, or else the one with the most leases of those with a config. It returns nil if there
// is none.
func network(endpoints []Endpoint, setting, last store.API) *Store {
	var best *Store
	better := func(s *Store) bool {
		switch {
		case !s.has() || !mayUse(setting, s.API):
			return false
		case best == nil:
			return true
		case (s.API == last) != (best.API == last):
			return s.API == last
		}
		return len(s.Leases) > len(best.Leases)
	}
	for _, e := range endpoints {
		for i := range e.Stores {
			if s := &e.Stores[i]; better(s) {
				best = s
			}
		}
	}
	return best
}

// Place is a place of a network config other than the configured one.
type Place struct {
	Prefix string
	API    store.API
}

// findElsewhere returns where there is a network config under the usual prefixes, and under the
// configured one in both APIs.
func (in *Inputs) findElsewhere(ctx context.Context) ([]Place, error) {
	o := in.Options
	o.Etcd = in.usableEtcd(ctx)
	other, has := strings.CutPrefix(o.Etcd.Prefix, "/")
	if !has {
		other = "/" + other
	}
	var places []Place
	for _, prefix := range append([]string{o.Etcd.Prefix, other}, store.Prefixes()...) {
		for _, api := range []store.API{store.APIv3, store.APIv2} {
			if p := (Place{prefix, api}); !slices.Contains(places, p) {
				places = append(places, p)
			}
		}
	}
	answers := make([]Store, len(places))
	var asked sync.WaitGroup
	for i, p := range places {
		asked.Go(func() {
			where := o.Etcd
			where.Prefix = p.Prefix
			answers[i] = askStore(ctx, p.API, where)
		})
	}
	asked.Wait()
	var found []Place
	for i, s := range answers {
		configured := places[i].Prefix == o.Etcd.Prefix && mayUse(o.API, places[i].API)
		if s.has() && !configured {
			found = append(found, places[i])
		}
	}
	return found, nil
}

// Resolve returns the endpoints that the SRV records of a domain name (RFC 2782), as etcd's own
// clients find them.
func Resolve(ctx context.Context, domain string) (urls []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, localLimit)
	defer cancel()
	var errs []error
	for _, s := range [][2]string{{"etcd-client-ssl", "https"}, {"etcd-client", "http"}} {
		_, found, err := net.DefaultResolver.LookupSRV(ctx, s[0], "tcp", domain)
		errs = append(errs, err)
		for _, r := range found {
			urls = append(urls, fmt.Sprintf("%s://%s", s[1], net.JoinHostPort(strings.TrimSuffix(r.Target, "."), fmt.Sprint(r.Port))))
		}
	}
	if len(urls) == 0 {
		return nil, errors.Join(errs...)
	}
	return urls, nil
}

// maxEndpoints limits how many endpoints are asked.
const maxEndpoints = 64

// askEtcd asks all endpoints at the same time. The error is one of the settings.
func askEtcd(ctx context.Context, o Options) ([]Endpoint, error) {
	if o.Domain != "" && len(o.Etcd.Endpoints) == 0 {
		return []Endpoint{{URL: o.Domain, Err: fmt.Errorf("no endpoints are found by SRV records: %w", o.DomainErr)}}, nil
	}
	parsed, err := o.Etcd.ParseEndpoints()
	if err != nil {
		return nil, err
	}
	files, err := o.Etcd.Files()
	if err != nil {
		return nil, err
	}
	if len(parsed.All) > maxEndpoints {
		return nil, fmt.Errorf("%d endpoints are too many", len(parsed.All))
	}
	all := make([]Endpoint, len(parsed.All))
	var asked sync.WaitGroup
	for i, e := range parsed.All {
		asked.Go(func() {
			one := o.Etcd
			one.Endpoints, one.Username, one.Password = []string{e.String()}, parsed.Username, parsed.Password
			all[i] = askEndpoint(ctx, e, one, o.API, files)
		})
	}
	asked.Wait()
	return all, nil
}

// margin is the part of the time limit in which the answers are put together.
const margin = 500 * time.Millisecond

func askEndpoint(ctx context.Context, e etcd.Endpoint, o etcd.Options, api store.API, files *etcd.Files) Endpoint {
	found := Endpoint{URL: e.String()}
	if until, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until.Add(-margin))
		defer cancel()
	}
	apis := []store.API{store.APIv3, store.APIv2} // hosts may use the other one
	found.Stores = make([]Store, len(apis))
	var asked sync.WaitGroup
	asked.Go(func() { found.askServer(ctx, e, files) })
	for i, api := range apis {
		asked.Go(func() { found.Stores[i] = askStore(ctx, api, o) })
	}
	asked.Wait()
	var problem error
	answers := false
	for _, s := range found.Stores {
		answers = answers || s.answers()
		if mayUse(api, s.API) && (problem == nil || errors.Is(problem, registry.ErrNoAPI) || s.answers()) {
			problem = s.Err
		}
	}
	if answers && (problem == nil || (Store{Err: problem}).answers() || errors.Is(problem, registry.ErrNoAPI)) {
		found.Err = nil
		return found
	}
	// A server that does not answer for its version says most simply why.
	if found.Err == nil || errors.Is(problem, registry.ErrDenied) {
		found.Err = problem
	}
	found.Err = o.WithRemedy(ctx, e, found.Err)
	return found
}

func askStore(ctx context.Context, api store.API, o etcd.Options) (s Store) {
	s.API = api
	client, err := openStore(api, o)
	if err != nil {
		s.Err = err
		return s
	}
	defer client.Close()
	s.Key = client.ConfigKey()
	if s.Config, s.Err = client.Config(ctx); !s.answers() {
		return s
	}
	listing, err := client.List(ctx)
	s.Leases, s.Invalid, s.LeasesErr = listing.Leases, listing.Invalid, err
	return s
}

func openStore(api store.API, o etcd.Options) (store.Client, error) {
	if api == store.APIv2 {
		return etcdv2.New(o)
	}
	return etcdv3.New(o)
}

// maxAnswer limits the length of an answer about the server.
const maxAnswer = 64 << 10

// askServer asks for the version, the clock and the cluster over HTTP, which etcd answers without a
// user.
func (f *Endpoint) askServer(ctx context.Context, e etcd.Endpoint, files *etcd.Files) {
	network, address := e.Address()
	t := &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: files.Config(),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	t.TLSClientConfig.ServerName = e.Hostname()
	defer t.CloseIdleConnections()
	base := url.URL{Scheme: "http", Host: e.Host()}
	if e.Secure() {
		base.Scheme = "https"
	}
	if base.Host == "" || e.Socket() != "" {
		base.Host = "localhost"
	}
	c := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	began := time.Now()
	var version struct{ Etcdserver string }
	head, err := askJSON(ctx, c, http.MethodGet, base.JoinPath("version").String(), "", &version)
	if f.Err = err; err != nil {
		return
	}
	f.Version, f.Asked, f.Took = version.Etcdserver, began, time.Since(began)
	if d, err := http.ParseTime(head.Get("Date")); err == nil {
		f.Date = d
	}
	var status struct {
		Header struct {
			Cluster json.RawMessage `json:"cluster_id"`
		}
		Leader json.RawMessage
	}
	if _, err := askJSON(ctx, c, http.MethodPost, base.JoinPath("v3/maintenance/status").String(), "{}", &status); err == nil {
		f.Cluster = strings.Trim(string(status.Header.Cluster), `"`)
		leader := strings.Trim(string(status.Leader), `"`)
		f.LeaderKnown, f.Leader = true, leader != "" && leader != "0"
	}
	if f.Cluster != "" {
		return
	}
	if head, err := askJSON(ctx, c, http.MethodGet, base.JoinPath("v2/members").String(), "", &struct{}{}); err == nil {
		f.Cluster = head.Get("X-Etcd-Cluster-Id")
	}
}

// askJSON sends a request and decodes the answer.
func askJSON(ctx context.Context, c *http.Client, method, url, body string, into any) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.Do(r)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return answer.Header, fmt.Errorf("answered with HTTP status %d", answer.StatusCode)
	}
	return answer.Header, json.NewDecoder(bytes.NewReader(text)).Decode(into)
}

// withoutURL returns an error of a request without the request's URL.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// usableEtcd returns the options of connections to an endpoint that answers, if there is one.
func (in *Inputs) usableEtcd(ctx context.Context) etcd.Options {
	o := in.Options.Etcd
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return o
	}
	if e, err := o.ParseEndpoints(); err == nil { // URLs of answers are without credentials
		o.Username, o.Password = e.Username, e.Password
	}
	if usable, _ := endpoints(all, none); len(usable) > 0 {
		o.Endpoints = []string{usable[0].URL}
	}
	return o
}

// secretsOf returns the passwords in options, whether or not they are valid.
func secretsOf(o etcd.Options) []string {
	secrets := []string{o.Password}
	for _, e := range o.Endpoints {
		_, rest, _ := strings.Cut(e, "://")
		at := strings.LastIndexByte(rest, '@')
		if at < 0 {
			continue
		}
		if _, password, ok := strings.Cut(rest[:at], ":"); ok {
			secrets = append(secrets, password)
			if plain, err := url.PathUnescape(password); err == nil {
				secrets = append(secrets, plain)
			}
		}
	}
	return secrets
}
