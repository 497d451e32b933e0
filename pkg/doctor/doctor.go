// Package doctor finds out why containers of different hosts do not reach each other. It runs a
// table of checks, each with an ID, and sorts what they found: the most probable cause first.
//
// It collects its own inputs, so it works while the daemon is down, and it changes nothing. A new
// check is a function in the file of its area, with a row in the table of the README and one in the
// table of faults (cmd/flanneld/doctor_faults_test.go). Invariants: a check fails only because of
// what was read, never because something could not be read; a check or a program that hangs makes
// only the results that depend on it unknown; and no output contains a secret (redact.go).
package doctor

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/registry/etcdv3"
)

// Status is the outcome of a check.
type Status string

// Values of Status. Unknown means that something could not be read or is not understood; its
// summary has the reason.
const (
	OK      Status = "ok"
	Fail    Status = "fail"
	Unknown Status = "unknown"
)

// Result is what a check has found.
type Result struct {
	Status  Status
	Summary string // one sentence in lower case without a full stop
	Remedy  string // command or setting that mends a failure; empty if nothing is wrong
}

// okf returns the result that nothing is wrong.
func okf(format string, args ...any) Result {
	return Result{Status: OK, Summary: fmt.Sprintf(format, args...)}
}

// failf returns the result that something is wrong, with what mends it.
func failf(remedy, format string, args ...any) Result {
	return Result{Status: Fail, Summary: fmt.Sprintf(format, args...), Remedy: remedy}
}

// unknownf returns the result that the check could not find out.
func unknownf(format string, args ...any) Result {
	return Result{Status: Unknown, Summary: fmt.Sprintf(format, args...)}
}

// Ranks order the causes that were found: the lower, the more probable that all others follow from
// it. Any number between them may be used.
const (
	rankDaemon  = 10 // nothing is kept in sync
	rankStore   = 20 // hosts do not know of each other
	rankConfig  = 30
	rankLease   = 40 // hosts know wrong things of each other
	rankFilter  = 50 // packets are dropped
	rankHost    = 60 // settings of this host
	rankDrift   = 70 // entries of the kernel
	rankPath    = 80 // symptoms: what could be a consequence of everything above
	rankSymptom = 90
)

// Check is one row of the table. It has either Run or After.
type Check struct {
	ID   string // such as FL-ETCD-DOWN; never changes, because scripts and the README name it
	Rank int    // see the constants
	Run  func(ctx context.Context, in *Inputs) Result
	// After is called when all other checks have ended. explained reports whether a check that has
	// failed explains a condition of the daemon.
	After func(ctx context.Context, in *Inputs, explained func(condition string) bool) Result
	// Explains are IDs of conditions of the daemon that follow from a failure of this check; one
	// that ends with a slash is a prefix of IDs.
	Explains []string
}

// Checks returns the table of all checks.
func Checks() []Check {
	return slices.Concat(daemonChecks(), etcdChecks(), configChecks(), leaseChecks(), duplicateChecks(), uplinkChecks(), filterChecks(), hostChecks(), deviceChecks(), pathChecks())
}

// explains reports whether a condition follows from a failure of the check.
func (c Check) explains(condition string) bool {
	return slices.ContainsFunc(c.Explains, func(id string) bool {
		return id == condition || strings.HasSuffix(id, "/") && strings.HasPrefix(condition, id)
	})
}

// Finding is a check with its result.
type Finding struct {
	ID      string `json:"id"`
	Status  Status `json:"status"`
	Summary string `json:"summary"`
	Remedy  string `json:"remedy"`

	rank int
}

// DiscardLog keeps libraries from printing to standard error. The program must call it once, before
// Run.
func DiscardLog() { etcdv3.DiscardLog() }

// Run runs all checks at the same time, and calls each with every finding when it is there, if it
// is not nil. A check that has not ended when ctx ends is unknown. Findings are redacted.
func Run(ctx context.Context, checks []Check, in *Inputs, each func(Finding)) Report {
	r := &run{checks: checks, in: in, each: each, waiting: map[int]bool{}, report: Report{Version: Version, Daemon: in.Redact.String(in.Options.Source)}}
	type ended struct {
		check  int
		result Result
	}
	results := make(chan ended, len(checks)) // has room for all, so that no check waits for a reader
	for i, c := range checks {
		if c.Run != nil {
			r.waiting[i] = true
			go func() { results <- ended{i, c.run(func() Result { return c.Run(ctx, in) })} }()
		}
	}
	for began := time.Now(); len(r.waiting) > 0; {
		select {
		case e := <-results:
			r.add(e.check, e.result)
		case <-ctx.Done():
			for i := range checks {
				if r.waiting[i] {
					r.add(i, unknownf("not finished after %s", time.Since(began).Round(100*time.Millisecond)))
				}
			}
		}
	}
	for i, c := range checks {
		if c.After != nil {
			r.add(i, c.run(func() Result { return c.After(ctx, in, r.explained) }))
		}
	}
	r.report.sort()
	return r.report
}

// run is the state of a Run.
type run struct {
	checks  []Check
	in      *Inputs
	each    func(Finding)
	waiting map[int]bool // checks that have not ended
	failed  []Check
	report  Report
}

// add adds a result to the report.
func (r *run) add(check int, result Result) {
	delete(r.waiting, check)
	c := r.checks[check]
	f := Finding{c.ID, result.Status, r.in.Redact.String(clip(oneLine(result.Summary))), r.in.Redact.String(clip(result.Remedy)), c.Rank}
	r.report.Findings = append(r.report.Findings, f)
	if f.Status == Fail {
		r.failed = append(r.failed, c)
	}
	if r.each != nil {
		r.each(f)
	}
}

// explained reports whether a failed check explains a condition of the daemon.
func (r *run) explained(condition string) bool {
	return slices.ContainsFunc(r.failed, func(c Check) bool { return c.explains(condition) })
}

// maxText limits the length of a summary and of a remedy: parts of them come from etcd.
const maxText = 2000

func clip(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// run runs a check. A check that panics is unknown, because its input may be anything.
func (c Check) run(f func() Result) (r Result) {
	defer func() {
		if p := recover(); p != nil {
			r = unknownf("the check itself failed, please report it: %v at %s", p, failedAt(debug.Stack()))
		}
	}()
	return f()
}
