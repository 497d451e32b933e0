package page

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"time"

	"flanneld/pkg/status"
)

// Event is what a watcher receives: the document of /status, in which peers are only those that
// have changed since the event before, and more that the page shows.
type Event struct {
	status.Document
	Whole   bool           `json:"whole"` // the first event: peers are all
	Gone    []netip.Prefix `json:"gone"`  // subnets of peers that are no longer there
	Facts   [][]string     `json:"facts"` // lines about this host: a name and a text
	Traffic *Traffic       `json:"traffic,omitempty"`
	Page    string         `json:"page"` // identifies the page of this daemon
}

// state is what the watchers have been sent.
type state struct {
	document status.Document // the peers are in the map
	head     []byte          // the rest of it, without what changes with the time only
	peers    map[netip.Prefix]status.Peer
	rates    uint64 // number of rates of the traffic so far
}

// newState returns the state that a document shows.
func newState(d status.Document, rates uint64) *state {
	s := &state{document: d, rates: rates, peers: make(map[netip.Prefix]status.Peer, len(d.Peers))}
	for _, p := range d.Peers {
		s.peers[p.Subnet] = p
	}
	d.Peers, d.Now = nil, time.Time{}
	d.Store.ViewAge, d.Lease.Remaining = nil, nil
	s.head, _ = json.Marshal(d) // cannot fail
	return s
}

// whole returns the event with all of the state.
func (s *state) whole() Event {
	return Event{Document: s.document, Whole: true, Gone: []netip.Prefix{}, Facts: s.document.Facts()}
}

// since returns the event that leads from an earlier state to this one, and reports whether they
// differ. The event always has all but the peers and the traffic, so that ages are up to date.
func (s *state) since(before *state) (e Event, differs bool) {
	e = Event{Document: s.document, Gone: []netip.Prefix{}, Facts: s.document.Facts()}
	e.Peers = []status.Peer{}
	for _, p := range s.document.Peers {
		if was, there := before.peers[p.Subnet]; !there || !samePeer(&was, &p) {
			e.Peers = append(e.Peers, p)
		}
	}
	for subnet := range before.peers {
		if _, there := s.peers[subnet]; !there {
			e.Gone = append(e.Gone, subnet)
		}
	}
	return e, len(e.Peers) > 0 || len(e.Gone) > 0 || s.rates != before.rates || !bytes.Equal(s.head, before.head)
}

// samePeer reports whether two states of a peer are equal.
func samePeer(a, b *status.Peer) bool {
	return a.Subnet == b.Subnet && a.PublicIP == b.PublicIP && a.State == b.State && a.Reason == b.Reason &&
		a.Programmed == b.Programmed && a.Probe == b.Probe && same(a.RTT, b.RTT) && same(a.Loss, b.Loss) &&
		same(a.Sent, b.Sent) && same(a.Received, b.Received) && same(a.Changed, b.Changed)
}

// same reports whether two values that may be unknown are equal.
func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// message returns an event in the format of server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).
func message(e Event) []byte {
	var b bytes.Buffer
	b.WriteString("data: ")
	_ = json.NewEncoder(&b).Encode(e) // cannot fail; the text has no line breaks but the last one
	b.WriteByte('\n')
	return b.Bytes()
}
