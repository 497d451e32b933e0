package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/status"
)

// etcdChecks returns the checks of etcd.
func etcdChecks() []Check {
	return []Check{
		{ID: "FL-ETCD-DOWN", Rank: rankStore, Run: checkEtcdAnswers, Explains: []string{status.StoreDown, "etcd-srv", configCondition}},
		{ID: "FL-ETCD-TLS", Rank: rankStore, Run: checkEtcdTLS, Explains: []string{status.StoreDown, "etcd-files", configCondition}},
		{ID: "FL-ETCD-DENIED", Rank: rankStore, Run: checkEtcdPermits, Explains: []string{"etcd-access/", status.StoreDown, configCondition}},
		{ID: "FL-ETCD-NO-LEADER", Rank: rankStore, Run: checkEtcdLeader, Explains: []string{status.StoreDown, configCondition}},
		{ID: "FL-ETCD-SPLIT", Rank: rankStore + 1, Run: checkEtcdSplit},
		{ID: "FL-CLOCK", Rank: rankHost, Run: checkClock},
	}
}

// problem is why an endpoint cannot be used.
type problem int

const (
	none problem = iota
	down         // nothing answers there
	badTLS
	denied
	leaderless
)

// problem returns the kind of problem with an endpoint.
func (e Endpoint) problem() problem {
	switch {
	case e.Err == nil:
		return none
	case e.LeaderKnown && !e.Leader:
		return leaderless
	case errors.Is(e.Err, registry.ErrDenied):
		return denied
	case isTLS(e.Err):
		return badTLS
	}
	return down
}

// isTLS reports whether a connection failed because of TLS or the lack of it.
func isTLS(err error) bool {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	return errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &invalid) ||
		strings.Contains(text, "tls: ") || strings.Contains(text, "x509: ") || strings.Contains(text, "etcd speaks ")
}

// endpoints returns the endpoints that can be used, and those that cannot for a reason.
func endpoints(all []Endpoint, why problem) (usable, failed []Endpoint) {
	for _, e := range all {
		switch e.problem() {
		case none:
			usable = append(usable, e)
		case why:
			failed = append(failed, e)
		}
	}
	return usable, failed
}

func urls(all []Endpoint) string {
	var words []string
	for _, e := range all {
		words = append(words, e.URL)
	}
	return and(words)
}

func reasons(all []Endpoint) string {
	var words []string
	for _, e := range all {
		text := e.Err.Error()
		if errors.Is(e.Err, context.DeadlineExceeded) {
			text = "no answer in time"
		}
		words = append(words, e.URL+": "+text)
	}
	return and(words)
}

// unusable returns the result of a check of what is stored, for an etcd that cannot be used.
func unusable() Result {
	return unknownf("etcd cannot be used, see FL-ETCD-DOWN, -TLS, -DENIED, -NO-LEADER")
}

// checkEtcdAnswers fails if no endpoint of etcd answers. Of the default endpoints, one is always
// down.
func checkEtcdAnswers(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	usable, silent := endpoints(all, down)
	switch {
	case len(all) > 0 && len(silent) == len(all):
		return failf("start etcd, permit connections to it, or set -etcd-endpoints to where it is", "etcd does not answer: %s", reasons(silent))
	case len(usable) == 0:
		return okf("etcd answers, but cannot be used")
	case len(silent) > 0:
		return okf("etcd answers at %s, not at %s", urls(usable), reasons(silent))
	}
	return okf("etcd answers at %s", urls(usable))
}

// checkEtcdTLS fails if TLS keeps this host from using any endpoint.
func checkEtcdTLS(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	usable, failed := endpoints(all, badTLS)
	switch {
	case len(usable) > 0:
		return okf("connections to etcd work as configured")
	case len(failed) == 0:
		return unknownf("no connection to etcd")
	}
	text := reasons(failed)
	remedy := "set -etcd-cafile, -etcd-certfile and -etcd-keyfile to the files for this etcd"
	if i := strings.LastIndex(text, ": "); i >= 0 && strings.Contains(text[i:], "-etcd-") {
		remedy, text = strings.TrimPrefix(text[i:], ": "), text[:i]
	}
	if strings.Contains(text, "expired or is not yet valid") {
		remedy = "renew the certificate, or set the clock: compare date with the certificate's dates"
	}
	return failf(remedy, "TLS with etcd fails: %s", text)
}

// checkEtcdPermits fails if etcd refuses this host's user.
func checkEtcdPermits(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	usable, failed := endpoints(all, denied)
	for _, e := range usable {
		for _, s := range e.Stores {
			if errors.Is(s.LeasesErr, registry.ErrDenied) {
				return failf(in.grant(ctx), "etcd does not permit this host to read leases: %s: %v", e.URL, s.LeasesErr)
			}
		}
	}
	if d, err := in.Status.Get(ctx); err == nil { // of writing, which is not tried
		for _, c := range d.Conditions {
			if strings.HasPrefix(c.ID, "etcd-access/") {
				return failf(c.Remedy, "%s", c.Text)
			}
		}
	}
	switch {
	case len(failed) > 0 && len(usable) == 0:
		return failf(in.grant(ctx), "etcd refuses this host: %s", reasons(failed))
	case len(usable) == 0:
		return unknownf("no connection to etcd")
	}
	return okf("etcd permits this host to read the network")
}

// grant returns the remedy for a missing permission: the daemon's, which knows the user.
func (in *Inputs) grant(ctx context.Context) string {
	if d, err := in.Status.Get(ctx); err == nil {
		for _, c := range d.Conditions {
			if strings.HasPrefix(c.ID, "etcd-access/") && c.Remedy != "" {
				return c.Remedy
			}
		}
	}
	return "set -etcd-username and -etcd-password to those of a user with the permission readwrite for " + in.Options.Etcd.Prefix + "/"
}

// checkEtcdLeader fails if etcd answers and has no leader, so that nothing can be read or written.
func checkEtcdLeader(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	usable, failed := endpoints(all, leaderless)
	switch {
	case len(usable) > 0:
		return okf("etcd serves requests")
	case len(failed) > 0:
		return failf("start the other members of etcd: most of them must run", "etcd has no leader: %s", urls(failed))
	}
	return unknownf("no connection to etcd")
}

// checkEtcdSplit fails if the endpoints belong to different etcds: hosts that use different ones do
// not see each other.
func checkEtcdSplit(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	usable, _ := endpoints(all, none)
	if len(usable) == 0 {
		return unusable()
	}
	if len(usable) == 1 {
		return okf("one endpoint is used")
	}
	const remedy = "set -etcd-endpoints on all hosts to the members of one etcd"
	unknown := 0
	for i, a := range usable {
		if a.Cluster == "" {
			unknown++
		}
		for _, b := range usable[:i] {
			if a.Cluster != "" && b.Cluster != "" && a.Cluster != b.Cluster {
				return failf(remedy, "the endpoints are of different etcds: %s is of cluster %s, %s of cluster %s", b.URL, b.Cluster, a.URL, a.Cluster)
			}
			if different(a, b) { // two etcds with the default settings have the same ID
				return failf(remedy, "the endpoints are of different etcds: %s and %s have different leases", b.URL, a.URL)
			}
		}
	}
	if unknown > 0 {
		return unknownf("cannot find out whether the endpoints are of one etcd: %d of %d do not name their cluster", unknown, len(usable))
	}
	return okf("all endpoints are of one etcd")
}

// different reports whether two endpoints both have leases, and less than half of them in common.
// They are not asked at the same moment, and hosts come and go.
func different(a, b Endpoint) bool {
	for _, s := range a.Stores {
		for _, o := range b.Stores {
			if s.API != o.API || s.LeasesErr != nil || o.LeasesErr != nil || !s.has() || !o.has() {
				continue
			}
			common, there := 0, subnetsOf(o)
			for _, l := range s.Leases {
				if there[l.Subnets] {
					common++
				}
			}
			if least := min(len(s.Leases), len(o.Leases)); least > 0 && 2*common < least {
				return true
			}
		}
	}
	return false
}

func subnetsOf(s Store) map[lease.Subnets]bool {
	there := make(map[lease.Subnets]bool, len(s.Leases))
	for _, l := range s.Leases {
		there[l.Subnets] = true
	}
	return there
}

// command returns a command for etcdctl.
func (in *Inputs) command(api store.API, args ...string) string {
	return store.Command(in.Options.Etcd, api, args...)
}

// store returns the store of this host's network: the one that the daemon uses or used, else the one
// with the most leases.
func (in *Inputs) store(ctx context.Context, all []Endpoint) *Store {
	var last store.API
	if claim, err := in.Claim.Get(ctx); err == nil {
		last = store.API(claim.Store)
	}
	if d, err := in.Status.Get(ctx); err == nil && d.Store.API != "" {
		last = store.API(d.Store.API)
	}
	return network(all, in.Options.API, last)
}

// maxOffset is the offset of clocks from which on a check fails: certificates begin and end, and
// logs of hosts cannot be compared.
const maxOffset = time.Minute

// checkClock fails if this host's clock and etcd's differ.
func checkClock(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd for the time: %v", err)
	}
	known := false
	for _, e := range all {
		if e.Date.IsZero() {
			continue
		}
		known = true
		// The header has whole seconds, and the answer took some time.
		offset := e.Asked.Add(e.Took / 2).Sub(e.Date.Add(time.Second / 2)).Round(time.Second)
		if offset.Abs() > maxOffset+e.Took {
			return failf("timedatectl set-ntp true # on this host and on that of etcd", "this host's clock is %s etcd's at %s",
				aheadOrBehind(offset), e.URL)
		}
	}
	if !known {
		return unknownf("etcd does not say what time it is")
	}
	return okf("this host's clock and etcd's agree")
}

func aheadOrBehind(d time.Duration) string {
	if d < 0 {
		return d.Abs().String() + " behind"
	}
	return d.String() + " ahead of"
}

// loopback reports whether all endpoints are on this host.
func loopback(all []Endpoint) bool {
	return !slices.ContainsFunc(all, func(e Endpoint) bool {
		_, rest, _ := strings.Cut(e.URL, "://")
		host, _, err := net.SplitHostPort(strings.TrimSuffix(rest, "/"))
		ip, ipErr := netip.ParseAddr(host)
		return err != nil || host != "localhost" && (ipErr != nil || !ip.IsLoopback())
	})
}
