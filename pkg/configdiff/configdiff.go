// Package configdiff compares a network config with a later one: which lines differ, and what the
// change means for the hosts of the network.
//
// It reads and writes nothing. Which changes need a restart is decided by package backend, as in
// the daemon. Invariant: a change that can cut off a host, or give it another subnet, is dangerous.
package configdiff

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Input is what a change is judged by.
type Input struct {
	Before []byte          // the stored config; nil if there is none
	After  []byte          // the config that replaces it
	Leases []lease.Lease   // of the network
	Needed map[string]bool // addresses of etcd, which hosts must reach without the overlay
}

// Report is the result of a comparison.
type Report struct {
	Problems []error  // why After is invalid; the rest is empty then, but for Diff
	Warnings []string // about keys of After
	Diff     []Line   // empty if the text is the same
	Effects  []Effect
}

// Effect is what a change means for the hosts.
type Effect struct {
	Text      string
	Dangerous bool
}

// Dangerous reports whether an effect is dangerous.
func (r Report) Dangerous() bool {
	return slices.ContainsFunc(r.Effects, func(e Effect) bool { return e.Dangerous })
}

// Compare compares two network configs.
func Compare(in Input) Report {
	r := Report{Diff: diff(in.Before, in.After)}
	if r.Problems, r.Warnings = backend.Problems(in.After); len(r.Problems) > 0 {
		return r
	}
	after, err := backend.ParseNetwork(in.After)
	if err != nil { // Problems would have it
		r.Problems = []error{err}
		return r
	}
	e := effects{Input: in, after: after}
	e.restart()
	e.leases()
	e.addresses()
	r.Effects = e.all
	return r
}

// effects are the effects of a change.
type effects struct {
	Input
	after backend.Network
	all   []Effect
}

func (e *effects) add(dangerous bool, format string, args ...any) {
	e.all = append(e.all, Effect{fmt.Sprintf(format, args...), dangerous})
}

// restart adds what running daemons do with the new config.
func (e *effects) restart() {
	before, err := backend.ParseNetwork(e.Before)
	if err != nil {
		text := "hosts that wait for a valid config begin with it at once"
		if len(e.Leases) > 0 {
			text += "; those that run keep the one that they have read before, as far as a change needs a restart"
		}
		e.add(false, "%s", text)
		return
	}
	if late := before.NeedsRestart(e.after); len(late) > 0 {
		for _, what := range late {
			e.add(true, "%s", what)
		}
		e.add(true, "flanneld must be restarted on all hosts; until then they keep the old config, and hosts that join or restart do not reach them")
		return
	}
	var now []string
	differ := func(name string, was, is any) {
		if was != is {
			now = append(now, fmt.Sprintf("%s is %v, was %v", name, is, was))
		}
	}
	differ("SubnetMin", before.V4.Min, e.after.V4.Min)
	differ("SubnetMax", before.V4.Max, e.after.V4.Max)
	differ("SubnetLeaseTTL", int(before.LeaseTTL.Seconds()), int(e.after.LeaseTTL.Seconds()))
	differ("EnableNFTables", choiceText(before.NFTables), choiceText(e.after.NFTables))
	if len(now) > 0 {
		e.add(false, "%s: running hosts apply it within a minute", strings.Join(now, "; "))
	}
}

func choiceText(c netconf.Choice) string {
	return [...]string{netconf.Unset: "not set", netconf.Yes: "true", netconf.No: "false"}[c]
}

// leases adds the hosts that the new config renumbers.
func (e *effects) leases() {
	var renumbered, ignored []string
	hosts := 0
	all := slices.SortedFunc(slices.Values(e.Leases), func(a, b lease.Lease) int { return a.Subnets.V4().Compare(b.Subnets.V4()) })
	for _, l := range all {
		if l.Leaving {
			continue
		}
		hosts++
		switch what := fmt.Sprintf("%s of %s", l.Subnets.V4(), l.PublicIP); {
		case e.after.V4.Fits(l.Subnets.V4()):
		case l.Reservation():
			ignored = append(ignored, what)
		default:
			renumbered = append(renumbered, what)
		}
	}
	if n := len(renumbered); n > 0 {
		e.add(true, "%s outside the subnets of this config: %s; %s when flanneld restarts there, and %s containers must be restarted",
			count(n, "lease is", "leases are"), examples(renumbered), plural(n, "the host gets another subnet", "the hosts get other subnets"), plural(n, "its", "their"))
	}
	if n := len(ignored); n > 0 {
		e.add(true, "%s outside the subnets of this config, and will be ignored: %s", count(n, "reservation is", "reservations are"), examples(ignored))
	}
	if size := e.after.V4.Size(); size < uint64(hosts) {
		e.add(true, "%s for %s: the others will wait for a free one", count(int(size), "subnet", "subnets"), count(hosts, "host", "hosts"))
	}
}

// addresses adds the addresses of etcd and of hosts that are in a subnet of a backend whose routes
// cover all of them. The daemon refuses a config if it needs such an address and has no longer
// route to it.
func (e *effects) addresses() {
	if !e.after.RoutesToAll() {
		return
	}
	inside := map[string]bool{}
	note := func(a netip.Addr, what string) {
		if slices.ContainsFunc(e.after.V4.Cover(), func(p netip.Prefix) bool { return p.Contains(a) }) {
			inside[a.String()+" "+what] = true
		}
	}
	for text := range e.Needed {
		if a, err := netip.ParseAddr(text); err == nil {
			note(a, "of etcd")
		}
	}
	for _, l := range e.Leases {
		note(l.PublicIP, "of a host")
	}
	if len(inside) > 0 {
		names := slices.Sorted(func(yield func(string) bool) {
			for name := range inside {
				if !yield(name) {
					return
				}
			}
		})
		e.add(true, "the subnets from SubnetMin to SubnetMax contain %s: hosts without a longer route to it refuse this config", examples(names))
	}
}

// count returns a number with its noun.
func count(n int, one, many string) string { return fmt.Sprint(n, " ", plural(n, one, many)) }

// plural returns the words for one of something, or for several.
func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// maxExamples is how many of several objects are named.
const maxExamples = 5

// examples returns the first few of several names.
func examples(names []string) string {
	if more := len(names) - maxExamples; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxExamples], ", "), more)
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}
