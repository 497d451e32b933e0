package operator

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/status"
)

// Leases is the document of "leases list". Fields keep their names and meaning as long as Version is
// the same.
type Leases struct {
	Version int       `json:"version"`
	Now     time.Time `json:"now"`
	Leases  []Lease   `json:"leases"`  // by subnet
	Invalid []Invalid `json:"invalid"` // entries that are no leases
	More    int       `json:"more_invalid"`
}

// Lease is a lease in a document.
type Lease struct {
	Subnet    netip.Prefix `json:"subnet"`
	PublicIP  netip.Addr   `json:"public_ip"`
	Backend   string       `json:"backend"` // empty if the lease does not say it
	Expires   *time.Time   `json:"expires"` // nil for a reservation
	Remaining *float64     `json:"expires_in_seconds"`
	Reserved  bool         `json:"reserved"`
	Leaving   bool         `json:"leaving"` // its host gives it up
	Own       bool         `json:"own"`     // its host is this one
}

// Invalid is an entry that is no lease.
type Invalid struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// concurrent is how many leases are read at a time.
const concurrent = 32

// Leases lists all leases.
func (n *Network) Leases(ctx context.Context) (Leases, error) {
	listing, err := n.reg.List(ctx)
	if err != nil {
		return Leases{}, err
	}
	all, err := n.withEnds(ctx, listing.Leases)
	if err != nil {
		return Leases{}, err
	}
	d := Leases{Version: 1, Now: time.Now(), Leases: []Lease{}, Invalid: []Invalid{}, More: listing.MoreInvalid}
	untyped := "" // backend of leases that do not say it
	if config, err := n.valid(); err == nil && (config.BackendType == "udp" || config.BackendType == "alloc") {
		untyped = config.BackendType
	}
	for _, l := range all {
		if l.Subnets.IsValid() {
			d.Leases = append(d.Leases, n.describe(l, d.Now, untyped))
		}
	}
	slices.SortFunc(d.Leases, func(a, b Lease) int { return a.Subnet.Compare(b.Subnet) })
	for _, b := range listing.Invalid {
		d.Invalid = append(d.Invalid, Invalid{b.Key, b.Err.Error()})
	}
	slices.SortFunc(d.Invalid, func(a, b Invalid) int { return strings.Compare(a.Key, b.Key) })
	return d, nil
}

// withEnds reads each lease that expires, because a listing need not say when. Those that are gone
// meanwhile are zero.
func (n *Network) withEnds(ctx context.Context, all []lease.Lease) ([]lease.Lease, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, room := make([]lease.Lease, len(all)), make(chan struct{}, concurrent)
	var reading sync.WaitGroup
	for i, l := range all {
		if l.Reservation() {
			out[i] = l
			continue
		}
		room <- struct{}{}
		reading.Go(func() {
			defer func() { <-room }()
			if ctx.Err() != nil {
				return
			}
			switch ev, err := n.reg.Get(ctx, l.Subnets); {
			case err != nil:
				cancel(err)
			case !ev.Deleted && ev.Invalid == nil:
				out[i] = ev.Lease
			}
		})
	}
	reading.Wait()
	return out, context.Cause(ctx)
}

func (n *Network) describe(l lease.Lease, now time.Time, untyped string) Lease {
	d := Lease{
		Subnet: l.Subnets.V4(), PublicIP: l.PublicIP, Backend: l.BackendType,
		Reserved: l.Reservation(), Leaving: l.Leaving, Own: n.identity.Owns(l),
	}
	if d.Backend == "" {
		d.Backend = untyped
	}
	if !d.Reserved {
		left := l.Expires.Sub(now).Round(time.Second).Seconds()
		d.Expires, d.Remaining = &l.Expires, &left
	}
	return d
}

// Text returns the document as a table.
func (d Leases) Text(s status.Style) string {
	rows := [][]string{{"subnet", "public IP", "backend", "time left", "host"}}
	for _, l := range d.Leases {
		left := "reserved, does not expire"
		if l.Remaining != nil {
			left = status.Span(time.Duration(*l.Remaining) * time.Second)
		}
		if l.Leaving {
			left = "being released"
		}
		host := "-"
		if l.Own {
			host = "this one"
		}
		rows = append(rows, []string{l.Subnet.String(), l.PublicIP.String(), cmp.Or(status.Clean(l.Backend), "-"), left, host})
	}
	text := s.Table(rows)
	if len(d.Leases) == 0 {
		text = "no leases\n"
	}
	for _, b := range d.Invalid {
		text += fmt.Sprintf("invalid entry %s: %s\n", status.Clean(b.Key), status.Clean(b.Reason))
	}
	if d.More > 0 {
		text += fmt.Sprintf("%d more invalid entries\n", d.More)
	}
	return text
}
