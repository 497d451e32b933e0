package status

import (
	"fmt"
	"strings"
	"time"
)

// Verdict is the state of the host in one word.
type Verdict string

// Verdicts.
const (
	VerdictOK       Verdict = "ok"
	VerdictDegraded Verdict = "degraded" // the overlay works, but something is wrong, or unknown
	VerdictDown     Verdict = "down"     // the host has no subnet, or its overlay cannot work
)

// StoreDown is the ID of the condition that etcd does not answer.
const StoreDown = "etcd"

// IDs of conditions with which the overlay of this host cannot work.
const (
	baseConditions  = "base/" // and an object: the host's own device, address or route is missing
	uplinkCondition = "uplink"
)

// fatal reports whether the overlay cannot work while the condition exists.
func (c *Condition) fatal() bool {
	return strings.HasPrefix(c.ID, baseConditions) || c.ID == uplinkCondition
}

// rank returns how bad the condition is.
func (c *Condition) rank() int {
	switch {
	case c.fatal():
		return 3
	case c.Severity == Severe:
		return 2
	case c.Severity == Notice:
		return 0
	}
	return 1
}

// Judge sets the verdict and its reason from the rest of the document.
func (d *Document) Judge() { d.Verdict, d.Reason = d.judge() }

func (d *Document) judge() (Verdict, string) {
	worst := d.worst()
	switch {
	case d.Lease.Lost:
		return VerdictDown, "another host has taken the subnet of this one" + because(worst)
	case !d.Lease.Subnet.IsValid():
		return VerdictDown, "this host has no subnet" + because(worst)
	case worst != nil && worst.fatal():
		return VerdictDown, worst.Text
	// A restart keeps the subnet and leaves the network as it is, also if etcd is not even found.
	case !d.Daemon.Ready && d.Store.Up == nil:
		return VerdictDegraded, "restarted, etcd was not asked yet, the network stays as it is" + because(worst)
	case !d.Daemon.Ready && !*d.Store.Up:
		return VerdictDegraded, "restarted without etcd, the network stays as it is" + because(worst)
	case !d.Daemon.Ready:
		return VerdictDown, "this host is not ready yet" + because(worst)
	case worst != nil && worst.Severity != Notice:
		return VerdictDegraded, worst.Text
	}
	if wrong := d.notFine(); wrong != "" {
		return VerdictDegraded, wrong
	}
	switch {
	case d.Drift == nil:
		return VerdictDegraded, "it is unknown whether the kernel has what it should have"
	case *d.Drift > 0:
		return VerdictDegraded, fmt.Sprintf("%d kernel objects are not as wanted", *d.Drift)
	}
	return VerdictOK, ""
}

// worst returns the worst condition, and of several equally bad ones the oldest, or nil.
func (d *Document) worst() (worst *Condition) {
	for i := range d.Conditions {
		if c := &d.Conditions[i]; worst == nil || c.rank() > worst.rank() {
			worst = c
		}
	}
	return worst
}

func because(c *Condition) string {
	if c == nil || c.Severity == Notice {
		return ""
	}
	return ": " + c.Text
}

// notFine returns how many peers are not fine, by the most common reason, or "" if all are.
func (d *Document) notFine() string {
	c := d.Count()
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{c.Unprogrammed, "unprogrammed"}, {c.Skipped, "skipped"}, {c.Failing, "failing the probe"}, {c.Lossy, "losing packets"}, {c.Unknown, "unknown"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("of %d peers, %s", len(d.Peers), strings.Join(parts, ", "))
}

// Counts are numbers of peers. Each peer is counted once.
type Counts struct {
	Fine         int
	Skipped      int
	Unprogrammed int
	Unknown      int
	Failing      int // programmed, but it does not answer probes any longer
	Lossy        int // programmed, but some probes are lost
}

// Count counts the peers.
func (d *Document) Count() (c Counts) {
	for i := range d.Peers {
		switch p := &d.Peers[i]; {
		case p.Fine():
			c.Fine++
		case p.State == OK && p.Probe == ProbeLossy:
			c.Lossy++
		case p.State == OK:
			c.Failing++
		case p.State == Skipped:
			c.Skipped++
		case p.State == Unprogrammed:
			c.Unprogrammed++
		default:
			c.Unknown++
		}
	}
	return c
}

// NotRunning returns the document of a daemon that does not run, or does not answer.
func NotRunning(now time.Time, v Verdict, reason string) Document {
	return Document{
		Version: Version, Now: now, Verdict: v, Reason: reason,
		Conditions: []Condition{}, Store: Store{Endpoints: []string{}}, DriftKinds: map[string]int{}, Repairs: []Repair{}, Peers: []Peer{},
	}
}
