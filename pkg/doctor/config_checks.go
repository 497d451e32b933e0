package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/store"
)

// configChecks returns the checks of the network config.
func configChecks() []Check {
	return []Check{
		{ID: "FL-CONFIG-MISSING", Rank: rankConfig, Run: checkConfigThere, Explains: []string{configCondition}},
		{ID: "FL-CONFIG-INVALID", Rank: rankConfig, Run: checkConfigValid, Explains: []string{configCondition}},
		{ID: "FL-CONFIG-CHANGED", Rank: rankConfig + 3, Run: checkConfigApplied, Explains: []string{"network-config/restart"}},
		{ID: "FL-TWO-STORES", Rank: rankConfig - 1, Run: checkTwoStores},
	}
}

// configCondition is the daemon's condition that the network config is missing or invalid.
const configCondition = "network-config"

// checkConfigThere fails if no API has a network config under the prefix.
func checkConfigThere(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	var have, missing []string
	read := map[store.API]error{} // of an endpoint that knows whether there is one, if any does
	for _, e := range all {
		for _, s := range e.Stores {
			where := fmt.Sprintf("%s in the %s API", s.Key, s.API)
			if _, asked := read[s.API]; mayUse(in.Options.API, s.API) && (!asked || s.knowsConfig()) {
				read[s.API] = s.Err
			}
			switch {
			case !mayUse(in.Options.API, s.API):
			case s.has() || errors.Is(s.Err, registry.ErrLongConfig):
				have = append(have, where)
			case errors.Is(s.Err, registry.ErrNoConfig):
				missing = append(missing, where)
			case errors.Is(s.Err, registry.ErrNoAPI) && e.Err == nil && in.Options.API == s.API:
				missing = append(missing, where+", which this etcd does not have")
			}
		}
	}
	have, missing = distinct(have), distinct(missing)
	switch {
	case len(have) > 0:
		return okf("there is a network config: %s", and(have))
	case len(missing) == 0:
		return unusable()
	}
	for api, err := range read {
		if !(Store{Err: err}).knowsConfig() {
			return unknownf("there is none at %s, and the %s API cannot be read: %v", and(missing), api, err)
		}
	}
	elsewhere, err := in.Elsewhere.Get(ctx)
	if err != nil || len(elsewhere) == 0 {
		return failf(in.createConfig(all), "there is no network config: none at %s", and(missing))
	}
	at := elsewhere[0]
	return failf(fmt.Sprintf("set -etcd-prefix=%s and -etcd-api=%s as on the other hosts", at.Prefix, at.API),
		"there is no network config at %s, but one under the prefix %s in the %s API", and(missing), at.Prefix, at.API)
}

// createConfig returns the remedy for a missing network config: the command that writes one in an API
// that answers.
func (in *Inputs) createConfig(all []Endpoint) string {
	for _, e := range all {
		for _, s := range e.Stores {
			if errors.Is(s.Err, registry.ErrNoConfig) && mayUse(in.Options.API, s.API) {
				return in.command(s.API, putVerb(s.API), s.Key, store.SampleConfig)
			}
		}
	}
	return "set -etcd-api to the API that this etcd has, as on the other hosts, or start it with --enable-v2"
}

// putVerb returns the verb that writes a key.
func putVerb(api store.API) string {
	if api == store.APIv2 {
		return "set"
	}
	return "put"
}

func distinct(words []string) []string {
	slices.Sort(words)
	return slices.Compact(words)
}

// checkConfigValid fails if the daemon's own parser rejects the network config.
func checkConfigValid(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	for _, e := range all {
		for _, s := range e.Stores {
			if errors.Is(s.Err, registry.ErrLongConfig) {
				return failf("write a shorter one to "+s.Key, "the network config is too long: %v", s.Err)
			}
		}
	}
	s := in.store(ctx, all)
	if s == nil {
		return unknownf("there is no network config to check")
	}
	n, err := backend.ParseNetwork(s.Config)
	if err != nil {
		return failf(in.command(s.API, putVerb(s.API), s.Key, "<the corrected config>"), "the daemon rejects the config at %s: %v", s.Key, err)
	}
	if d, err := in.Status.Get(ctx); err == nil { // the daemon also compares it with this host
		for _, c := range d.Conditions {
			if c.ID == configCondition && strings.Contains(c.Text, "invalid") {
				return failf(c.Remedy, "the daemon rejects the config at %s: %s", s.Key, c.Text)
			}
		}
	}
	return okf("the network config is valid: %s, %s", n.V4.Network, n.BackendType)
}

// checkConfigApplied fails if the network config was changed in a way that needs a restart.
func checkConfigApplied(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("cannot ask the daemon for its config: %v", err)
	}
	for _, c := range d.Conditions {
		if c.ID == "network-config/restart" {
			return failf("systemctl restart flanneld # on all hosts", "%s", c.Text)
		}
	}
	if !d.Network.CIDR.IsValid() {
		return unknownf("the daemon has no network config yet")
	}
	return okf("the daemon uses the present network config")
}

// checkTwoStores fails if both APIs have a network under the prefix, and hosts use different ones.
func checkTwoStores(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	used := in.store(ctx, all)
	if used == nil {
		return unknownf("there is no network config")
	}
	hosts := hostsOf(*used)
	for _, e := range all {
		for _, s := range e.Stores {
			if s.API == used.API || !s.has() {
				continue
			}
			var others []netip.Addr
			for ip := range hostsOf(s) {
				if !hosts[ip] {
					others = append(others, ip)
				}
			}
			if len(others) > 0 {
				slices.SortFunc(others, netip.Addr.Compare)
				return failf(fmt.Sprintf("set -etcd-api=%s on all hosts; then %s", used.API, in.command(s.API, deleteVerb(s.API), s.Key)),
					"both APIs of etcd have a network under %s, and %d hosts such as %s are only in the other one than this host's, %s",
					in.Options.Etcd.Prefix, len(others), others[0], used.API)
			}
			return okf("this host's network is in the %s API; the %s API has a config too, which no other host uses", used.API, s.API)
		}
	}
	return okf("only the %s API has a network under %s", used.API, in.Options.Etcd.Prefix)
}

func deleteVerb(api store.API) string {
	if api == store.APIv2 {
		return "rm"
	}
	return "del"
}

// hostsOf returns the public IPs of a store's leases that expire: reservations may be of hosts that
// are long gone.
func hostsOf(s Store) map[netip.Addr]bool {
	hosts := map[netip.Addr]bool{}
	for _, l := range s.Leases {
		if !l.Reservation() {
			hosts[l.PublicIP] = true
		}
	}
	return hosts
}
