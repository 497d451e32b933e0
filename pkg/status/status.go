// Package status defines the document of /status: what a daemon knows about its host, its peers,
// and what is wrong. It also computes the verdict and the text of a document.
//
// It has no clock and no I/O: the document contains the time for which it is true. Invariants:
// what is not known is null or "unknown", never false or 0; fields of version 1 keep their names
// and their meaning, and new ones may be added.
package status

import (
	"net/netip"
	"time"
)

// Version is the version of the document.
const Version = 1

// Document is the state of a daemon.
type Document struct {
	Version int       `json:"version"`
	Now     time.Time `json:"now"` // when the rest was true
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason"` // why the verdict is not ok: the worst reason

	Daemon     Daemon      `json:"daemon"`
	Conditions []Condition `json:"conditions"` // the oldest first
	Store      Store       `json:"store"`
	Network    Network     `json:"network"`
	Lease      Lease       `json:"lease"`
	Uplink     Uplink      `json:"uplink"`
	Backend    Backend     `json:"backend"`
	Bridge     *Bridge     `json:"bridge"` // null if it is unknown
	Filter     Filter      `json:"filter"`

	// Drift is the number of objects that were not as wanted at the end of the last full
	// comparison with the kernel; null before the first, and if the kernel was not read for long.
	Drift      *int           `json:"drift"`
	DriftKinds map[string]int `json:"drift_by_kind"` // by kind, such as "route"
	LastRepair *Repair        `json:"last_repair"`   // null if there was none
	Repairs    []Repair       `json:"repairs"`       // the last ones, the latest first
	Peers      []Peer         `json:"peers"`         // sorted by subnet
}

// Daemon is the process.
type Daemon struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Ready   bool      `json:"ready"` // the host has its subnet, and the subnet file is written
}

// Condition is a problem that exists now.
type Condition struct {
	ID       string    `json:"id"`
	Severity Severity  `json:"severity"`
	Since    time.Time `json:"since"`
	Text     string    `json:"text"`
	Remedy   string    `json:"remedy"` // command that can be pasted; empty if there is none
}

// Severity is how much a condition matters.
type Severity string

// Severities of conditions.
const (
	Notice  Severity = "notice"  // the overlay works as it should
	Warning Severity = "warning" // the overlay is degraded, or soon will be
	Severe  Severity = "severe"  // needs a person now
)

// Store is etcd as far as this daemon uses it.
type Store struct {
	API       string     `json:"api"` // v2 or v3; empty until a network config was found
	Prefix    string     `json:"prefix"`
	Endpoints []string   `json:"endpoints"`
	Up        *bool      `json:"up"`         // whether it answers; null before the first attempt
	DownSince *time.Time `json:"down_since"` // null unless up is false
	// ViewAge is the time since the store confirmed that the peers below are all; null if it never
	// did.
	ViewAge *float64 `json:"view_age_seconds"`
	Invalid int      `json:"invalid_entries"` // entries that cannot be decoded
}

// Network is the part of the network config that peers share.
type Network struct {
	CIDR      netip.Prefix `json:"cidr"` // empty until a network config was found
	SubnetLen int          `json:"subnet_len"`
}

// Lease is the lease of this host.
type Lease struct {
	Subnet    netip.Prefix `json:"subnet"`             // empty if there is none
	Expires   *time.Time   `json:"expires"`            // null for a reservation, and if there is no lease
	Remaining *float64     `json:"expires_in_seconds"` // from now; null as expires
	Lost      bool         `json:"lost"`               // another host has taken the subnet
}

// Uplink is the interface that carries the overlay.
type Uplink struct {
	Interface string     `json:"interface"`
	Address   netip.Addr `json:"address"`
	PublicIP  netip.Addr `json:"public_ip"`
	MTU       int        `json:"mtu"`
}

// Backend is how packets reach other hosts.
type Backend struct {
	Type   string `json:"type"`   // empty until a network config was found
	Device string `json:"device"` // empty if the backend has none
	MTU    int    `json:"mtu"`    // of containers; 0 until it is known
}

// Bridge is the interface by which this host reaches the containers of its subnet.
type Bridge struct {
	Device  string     `json:"device"`  // empty if there is neither an address of the subnet nor a route to containers
	Address netip.Addr `json:"address"` // of the subnet; empty if the device has none
	MTU     int        `json:"mtu"`     // 0 if it is unknown
}

// Filter is the packet filter of this host.
type Filter struct {
	Keeper     string `json:"keeper"`  // iptables or nftables, as it calls itself; empty until rules were written
	Version    string `json:"version"` // of its tool; empty if unknown
	Masquerade bool   `json:"masquerade"`
	Forward    bool   `json:"forward"`
	Lock       bool   `json:"underlay_lock"`
}

// Repair is a repair of what another program had changed.
type Repair struct {
	At      time.Time `json:"at"`
	What    string    `json:"what"`    // as in the log, such as "+1 route"
	Example string    `json:"example"` // one of the changes: a command, or a rule
}

// Peer is another host of the network.
type Peer struct {
	Subnet     netip.Prefix `json:"subnet"`
	PublicIP   netip.Addr   `json:"public_ip"`
	State      PeerState    `json:"state"`
	Reason     string       `json:"reason"`     // why the peer is not fine
	Programmed string       `json:"programmed"` // what the kernel has for it, such as "fdb, neighbor, route"
	Probe      ProbeState   `json:"probe"`
	RTT        *float64     `json:"rtt_ms"`             // of the last answer; null if it never answered
	Loss       *float64     `json:"loss"`               // share of recent pings without an answer, 0 to 1
	Sent       *Traffic     `json:"sent,omitempty"`     // only with the udp backend, which counts it
	Received   *Traffic     `json:"received,omitempty"` // only with the udp backend
	Changed    *time.Time   `json:"changed"`            // last change of its lease; null if older than the daemon
}

// PeerState is whether the kernel has what a peer needs.
type PeerState string

// States of peers.
const (
	OK           PeerState = "ok"
	Skipped      PeerState = "skipped"      // its lease cannot be used, or conflicts with another one
	Unprogrammed PeerState = "unprogrammed" // the kernel lacks an object for it
	Unknown      PeerState = "unknown"      // the kernel was not read yet, or not for long
)

// Probe is what pings through the overlay have shown about a peer.
type Probe struct {
	State    ProbeState
	RTT      time.Duration // of the last answer; 0 if it never answered
	Loss     float64       // share of recent pings without an answer, 0 to 1; -1 if unknown
	Fault    string        // why State is ProbeFailing or ProbeLossy
	Answered time.Time     // time of the last answer; zero if it never answered
}

// ProbeState is whether a peer answers pings through the overlay.
type ProbeState string

// States of a probe.
const (
	ProbeOff     ProbeState = "off"     // probing is switched off
	ProbeOK      ProbeState = "ok"      // the peer answers
	ProbeLossy   ProbeState = "lossy"   // the peer answers, but a good part of the pings is lost
	ProbeFailing ProbeState = "failing" // the peer has answered, and does no longer, or large packets are lost
	ProbeUnknown ProbeState = "unknown" // the peer has never answered
)

// Traffic is a number of inner packets and of their bytes.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Fine reports whether nothing is known to be wrong with the peer.
func (p *Peer) Fine() bool {
	return p.State == OK && p.Probe != ProbeFailing && p.Probe != ProbeLossy
}

// SetProbe sets what pings have shown.
func (p *Peer) SetProbe(r Probe) {
	p.Probe = r.State
	if r.RTT > 0 {
		ms := float64(r.RTT.Microseconds()) / 1000
		p.RTT = &ms
	}
	if r.State != ProbeOff && r.Loss >= 0 && !r.Answered.IsZero() {
		p.Loss = &r.Loss
	}
	if p.Reason == "" {
		p.Reason = r.Fault
	}
}
