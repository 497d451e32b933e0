package host

import (
	"fmt"
	"net/netip"
	"strings"

	"flanneld/pkg/shell"
)

// Query is a packet whose route is asked for.
type Query struct {
	Dst netip.Addr
	Src netip.Addr // invalid if the kernel chooses it
	In  string     // device that the packet arrives by; empty if this host sends it
}

// String returns the query as arguments of "ip route get".
func (q Query) String() string {
	s := q.Dst.String()
	if q.Src.IsValid() {
		s += " from " + q.Src.String()
	}
	if q.In != "" {
		s += " iif " + shell.Word(q.In)
	}
	return s
}

// Decision is what the kernel does with a packet by its rules and routes (ip-rule(8), ip-route(8)).
type Decision struct {
	// Refused says why the packet is not sent anywhere; empty if it is. The other fields are zero
	// then.
	Refused string
	Iface   string     // output interface
	Gateway netip.Addr // invalid if the destination is on the link
	Source  netip.Addr // that packets of this host get
	Local   bool       // the packet is for this host
	// Table is the routing table if a rule selects another one than the usual ones, else 0.
	Table int
}

// Text returns the decision for a destination in the form of "ip route get".
func (d Decision) Text(dst netip.Addr) string {
	if d.Refused != "" {
		return dst.String() + ": " + d.Refused
	}
	words := []string{dst.String()}
	if d.Local {
		words = []string{"local", dst.String()}
	}
	if d.Gateway.IsValid() {
		words = append(words, "via "+d.Gateway.String())
	}
	words = append(words, "dev "+d.Iface)
	if d.Table != 0 {
		words = append(words, fmt.Sprint("table ", d.Table))
	}
	return strings.Join(words, " ")
}

// Neighbor is an entry of the kernel's neighbour table (ip-neighbour(8)).
type Neighbor struct {
	Exists bool
	MAC    [6]byte
	State  string // as ip(8) names it, such as REACHABLE; empty for NUD_NONE
}

// Resolved reports whether the kernel can send packets to the neighbour.
func (n Neighbor) Resolved() bool {
	switch n.State {
	case "REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT", "NOARP":
		return n.Exists
	}
	return false
}
