package reconcile

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// readAge is the maximum age of a reading of the kernel from which something can be concluded. It
// is read once a minute, and a fight with another program delays that.
const readAge = 3 * resync

// Snapshot is the state after a pass. It is immutable, and what it contains is shared with the pass.
// What a request for the status needs beyond it is computed by the request.
type Snapshot struct {
	View   lease.View
	ReadAt time.Time              // when the kernel was last read
	Drift  map[dataplane.Kind]int // as in Stats

	backend backend.Backend
	facts   host.Facts
	skipped []backend.Skipped
	lacking []lacking
	changes *changes
}

// lacking is a wanted object that is not as wanted.
type lacking struct {
	op     dataplane.Op
	reason string
	err    error // nil if it is for the reason
}

// pausedReason is the reason for objects that are left alone for a while.
const pausedReason = "another program keeps undoing it, will be repaired later"

func (l lacking) String() string {
	if l.err != nil {
		return l.op.Object() + ": " + l.err.Error()
	}
	return l.op.Object() + ": " + l.reason
}

// publish publishes the snapshot of a completed pass. Objects that a partial pass did not compare
// are as before.
func (l *Loop) publish(p *pass, f host.Facts, v lease.View) {
	s := &Snapshot{
		View: v, ReadAt: l.readAt, Drift: p.drift, backend: l.cfg.Backend, facts: f, changes: &l.changes,
		skipped: slices.Clone(l.plan.Skipped()),
	}
	if was := l.snapshot.Load(); was != nil && p.partial {
		s.Drift = was.Drift
		s.lacking = slices.DeleteFunc(slices.Clone(was.lacking), func(o lacking) bool { return p.change.About(o.op) })
	}
	for _, o := range p.lacking {
		o.op = o.op.Clone()
		s.lacking = append(s.lacking, o)
	}
	l.snapshot.Store(s)
	if p.repaired.n > 0 {
		l.cfg.Repaired(p.repaired.String(), p.repaired.first.String())
	}
}

// Snapshot returns the state after the last completed pass, or nil if there was none. It may be
// called from any goroutine.
func (l *Loop) Snapshot() *Snapshot { return l.snapshot.Load() }

// Outdated reports whether the kernel was not read for so long that the snapshot no longer says
// anything about it.
func (s *Snapshot) Outdated(now time.Time) bool { return now.Sub(s.ReadAt) > readAge }

// PeerState is whether the kernel has the objects of a peer.
type PeerState uint8

// States of a peer.
const (
	Unknown PeerState = iota // the kernel was not read recently
	Programmed
	Unprogrammed // an object is not as wanted
	Skipped      // no objects are wanted, because of the peer's lease
)

// Peer is what the kernel has for a peer.
type Peer struct {
	*lease.Lease
	State   PeerState
	Reason  string    // why the State is not Programmed
	Has     string    // kinds of the objects, and their device; empty if there are none or unknown
	Changed time.Time // last change of its lease; zero if there was none since the loop was created
}

// Peers returns the peers in the order of the view.
func (s *Snapshot) Peers(now time.Time) iter.Seq[Peer] {
	return func(yield func(Peer) bool) {
		skipped := make(map[lease.Subnets]lease.Fault, len(s.skipped))
		for _, o := range s.skipped {
			skipped[o.Subnets] = o.Fault
		}
		r := s.reader()
		changed := s.changes.since()
		for _, l := range s.View.Peers {
			p := Peer{Lease: l, Changed: changed[l.Subnets]}
			if fault, is := skipped[l.Subnets]; is {
				p.State, p.Reason = Skipped, fault.Error()
			} else if s.Outdated(now) {
				p.Reason = "the kernel was not read for more than " + readAge.String()
			} else {
				r.read(&p)
			}
			if !yield(p) {
				return
			}
		}
	}
}

// reader finds out what the kernel has for each peer of a snapshot.
type reader struct {
	*Snapshot
	lacks  map[string]lacking      // by object
	kinds  map[dataplane.Kind]bool // of those
	all    map[string]string       // objects of a peer that has all, by device: they are of the same kinds
	wanted dataplane.State         // objects of the present peer
}

func (s *Snapshot) reader() reader {
	r := reader{s, make(map[string]lacking, len(s.lacking)), map[dataplane.Kind]bool{}, map[string]string{}, dataplane.NewState()}
	for _, o := range s.lacking {
		r.lacks[o.op.Object()], r.kinds[o.op.Kind] = o, true
	}
	return r
}

// read sets what the kernel has for a peer that is not skipped.
func (r reader) read(p *Peer) {
	device := r.backend.Via(r.facts, p.Lease)
	p.State = Programmed
	all, known := r.all[device]
	if p.Has = all; known && len(r.kinds) == 0 {
		return
	}
	r.wanted.Clear()
	backend.AddPeer(r.backend, r.wanted, r.facts, p.Lease)
	for kind := range r.kinds {
		for op := range r.wanted.Objects(kind) {
			if _, lacks := r.lacks[op.Object()]; lacks {
				p.State = Unprogrammed
			}
		}
	}
	if known && p.State == Programmed {
		return
	}
	var kinds []string
	for _, k := range dataplane.Kinds() {
		for op := range r.wanted.Objects(k) {
			if o, lacks := r.lacks[op.Object()]; lacks {
				p.Reason = cmp.Or(p.Reason, o.String())
			} else {
				kinds = append(kinds, k.String())
			}
		}
	}
	if p.Has = strings.Join(kinds, ", "); p.Has != "" {
		p.Has += " on " + device
	}
	if p.State == Programmed {
		r.all[device] = p.Has
	}
}

// changes are the times of the last changes of the peers' leases.
type changes struct {
	mu   sync.Mutex
	view *lease.View // nil before the first
	at   map[lease.Subnets]time.Time
}

// update records what a view has changed.
func (c *changes) update(v lease.View, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view != nil {
		for was, is := range v.ChangesSince(*c.view) {
			if c.at == nil {
				c.at = map[lease.Subnets]time.Time{}
			}
			if is != nil {
				c.at[is.Subnets] = now
			} else {
				delete(c.at, was.Subnets)
			}
		}
	}
	c.view = &v
}

// since returns a copy of the times.
func (c *changes) since() map[lease.Subnets]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.at)
}
