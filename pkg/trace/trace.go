// Package trace follows a packet between two container addresses as this host sees its way: through
// the bridge, the packet filter, the route, the neighbour entry, the FDB entry and the uplink to the
// peer, and back. It names the first thing that is wrong.
//
// It turns Facts into a Trace, without a clock and without I/O; package doctor collects the facts.
// Invariants: a step is wrong only because of what was read, and what could not be read makes a step
// unknown; silence of another host is held against that host only if everything on this one is fine.
package trace

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// Version is the version of the JSON form of a Trace.
const Version = 1

// Verdict is the result of a trace.
type Verdict string

// Values of Verdict.
const (
	OK      Verdict = "ok"
	Broken  Verdict = "broken"
	Unknown Verdict = "unknown" // nothing is known to be wrong, but some steps are unknown
)

// Role is where this host is on the way of the packet.
type Role string

// Values of Role.
const (
	Sender   Role = "sender"   // the source address is in this host's subnet
	Receiver Role = "receiver" // the destination address is
	Both     Role = "both"
	Neither  Role = "neither"
)

// Direction is that of a packet.
type Direction string

// Values of Direction.
const (
	Request Direction = "request" // from the source to the destination
	Reply   Direction = "reply"
)

// Trace is the way of a packet and of the reply to it.
type Trace struct {
	Version int     `json:"version"`
	Verdict Verdict `json:"verdict"`
	// Reason and Remedy are those of the first step that is wrong, or else unknown.
	Reason string     `json:"reason"`
	Remedy string     `json:"remedy"`
	Src    netip.Addr `json:"src"`
	Dst    netip.Addr `json:"dst"`
	Role   Role       `json:"role"`
	Daemon string     `json:"daemon"` // whether a flanneld runs, and where the settings are from
	Steps  []Step     `json:"steps"`
}

// Step is one place on the way.
type Step struct {
	Direction Direction `json:"direction"`
	At        string    `json:"at"`      // such as "route"
	Object    string    `json:"object"`  // what was found there
	Command   string    `json:"command"` // that shows it
	OK        *bool     `json:"ok"`      // null: unknown
	Reason    string    `json:"reason"`  // why it is not ok, or not known
	Remedy    string    `json:"remedy"`  // command that mends it; empty if there is none
}

// Places of steps.
const (
	atLease      = "lease"
	atBridge     = "bridge"
	atContainer  = "container"
	atForwarding = "forwarding"
	atRules      = "rules"
	atDevice     = "device"
	atRoute      = "route"
	atNeighbor   = "neighbor"
	atFDB        = "fdb"
	atTunnel     = "tunnel"
	atUplink     = "uplink"
	atPeer       = "peer"
)

// ok returns the step with OK set to true.
func (s Step) ok() Step {
	yes := true
	s.OK = &yes
	return s
}

// failf returns the step as a wrong one, with what mends it.
func (s Step) failf(remedy, format string, args ...any) Step {
	no := false
	s.OK, s.Remedy, s.Reason = &no, remedy, fmt.Sprintf(format, args...)
	return s
}

// unknownf returns the step as one that could not be found out.
func (s Step) unknownf(format string, args ...any) Step {
	s.OK, s.Reason = nil, fmt.Sprintf(format, args...)
	return s
}

func (s Step) wrong() bool { return s.OK != nil && !*s.OK }

// Walk returns the trace.
func Walk(f Facts) Trace {
	t := Trace{Version: Version, Verdict: OK, Src: f.Src.Addr, Dst: f.Dst.Addr, Role: f.Role(), Daemon: f.Daemon.Text}
	switch t.Role {
	case Sender:
		t.Steps = f.between(Request, Reply)
	case Receiver:
		t.Steps = f.between(Reply, Request)
	case Both:
		t.Steps = append(f.inside(Request), f.inside(Reply)...)
	case Neither:
		t.Steps = f.leasesOnly()
	}
	t.judge(f.Subnet)
	return t
}

// judge sets the verdict and the reason. own is this host's subnet.
func (t *Trace) judge(own netip.Prefix) {
	for _, s := range t.Steps {
		switch {
		case s.wrong():
			t.Verdict, t.Reason, t.Remedy = Broken, s.At+": "+s.Reason, s.Remedy
			return
		case s.OK == nil && t.Verdict == OK:
			t.Verdict, t.Reason = Unknown, s.At+": "+s.Reason
		}
	}
	switch {
	case t.Role == Neither && !own.IsValid():
		t.Verdict, t.Reason = Unknown, "this host's subnet is not known"
	case t.Role == Neither:
		t.Verdict, t.Reason = Unknown, "neither address is in this host's subnet: this is what its leases say; run the trace on one of the two hosts"
	}
}

// between returns the steps of a packet between a container of this host and one of another host:
// the request first. out is the direction in which this host sends.
func (f *Facts) between(out, in Direction) []Step {
	outgoing, incoming := f.outgoing(out), f.incoming(in)
	// What the peer does not answer may be due to this host.
	fault := slices.ContainsFunc(slices.Concat(outgoing, incoming), Step.wrong)
	outgoing = append(outgoing, f.peerReceives(out, fault)...)
	incoming = slices.Insert(incoming, 1, f.peerSends(in, fault)) // after the lease
	if out == Request {
		return slices.Concat(outgoing, incoming)
	}
	return slices.Concat(incoming, outgoing)
}

// leasesOnly returns what this host knows if neither address is in its subnet.
func (f *Facts) leasesOnly() []Step {
	return []Step{f.ownerStep(Request, f.Dst), f.ownerStep(Reply, f.Src)}
}

// JSON writes the trace as JSON.
func (t Trace) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(t)
}
