package api

import (
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/status"
)

// rfc3339 is the format of times in answers.
const rfc3339 = time.RFC3339

// State is the state that readiness depends on. Other rooms set it. All methods may be called by
// several goroutines. Make one with NewState.
type State struct {
	conditions *condition.List

	ready      atomic.Bool
	subnetLost atomic.Bool
	etcdDown   atomic.Pointer[time.Time] // since when; zero if it answers, nil before the first attempt
}

// NewState returns the state of a daemon that has just started.
func NewState(conditions *condition.List) *State { return &State{conditions: conditions} }

// SetReady sets that the host has its subnet.
func (s *State) SetReady() { s.ready.Store(true) }

// Ready reports whether the host has its subnet, or had it before another host took it.
func (s *State) Ready() bool { return s.ready.Load() }

// SetSubnetLost sets whether another host has taken the subnet, and this one has no other yet.
func (s *State) SetSubnetLost(lost bool) { s.subnetLost.Store(lost) }

// SetEtcdDown sets since when etcd does not answer; the zero time means that it answers.
func (s *State) SetEtcdDown(since time.Time) { s.etcdDown.Store(&since) }

// EtcdDownSince returns since when etcd does not answer, or the zero time if it does, or if that is
// not known.
func (s *State) EtcdDownSince() time.Time {
	if since := s.etcdDown.Load(); since != nil {
		return *since
	}
	return time.Time{}
}

// EtcdAnswers returns whether etcd answers, or nil if that is not known yet.
func (s *State) EtcdAnswers() *bool {
	since := s.etcdDown.Load()
	if since == nil {
		return nil
	}
	up := since.IsZero()
	return &up
}

// Conditions returns the present conditions, the oldest first. That etcd does not answer is one of
// them.
func (s *State) Conditions() []status.Condition {
	all := []status.Condition{}
	for _, c := range s.conditions.Current() {
		all = append(all, status.Condition{
			ID: c.ID, Severity: status.Severity(c.Severity.String()), Since: c.Since,
			Text: withoutUsers(c.String()), Remedy: withoutUsers(c.Remedy()),
		})
	}
	if since := s.EtcdDownSince(); !since.IsZero() {
		all = append(all, status.Condition{
			ID: status.StoreDown, Severity: status.Warning, Since: since,
			Text: "etcd does not answer, waiting for it",
		})
		slices.SortStableFunc(all, func(a, b status.Condition) int { return a.Since.Compare(b.Since) })
	}
	return all
}

// userinfo matches the user and the password in a URL. A password that is not encoded may contain
// slashes and more @.
var userinfo = regexp.MustCompile(`://[^\s"'<>]*@`)

// withoutUsers returns text without users and passwords in URLs, because the answers may be read by
// others than root.
func withoutUsers(text string) string { return userinfo.ReplaceAllString(text, "://") }

// readiness is the answer of /readyz except on the health port.
type readiness struct {
	Ready bool `json:"ready"`
	// Conditions are all conditions; Degraded has those, while Ready, that are more than notices.
	Conditions []status.Condition `json:"conditions"`
	Degraded   []string           `json:"degraded"`
}

func (s *State) readiness() readiness {
	r := readiness{Ready: s.Ready() && !s.subnetLost.Load(), Conditions: s.Conditions(), Degraded: []string{}}
	for _, c := range r.Conditions {
		if r.Ready && c.Severity != status.Notice {
			r.Degraded = append(r.Degraded, c.ID)
		}
	}
	return r
}
