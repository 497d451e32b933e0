package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
)

// IDs of conditions.
const (
	uncheckedCondition = "kernel/unchecked/" // followed by what cannot be read
	fightCondition     = "kernel/fight"
	refusedCondition   = "kernel/refused"
)

// report logs the results of passes, one line for each that changed something, and keeps the
// conditions that follow from them.
type report struct {
	log           *slog.Logger
	last          []backend.Skipped
	peers         *condition.Group // skipped peers, by subnet
	conflicts     *condition.Group // by operation
	failedObjects int              // objects that have failed since the last pass without failures

	conditions *condition.List

	due        time.Time // when the next group line is due; zero if none is
	progressAt time.Time // time of the last progress line of the present pass
}

func newReport(log *slog.Logger, conditions *condition.List) *report {
	return &report{
		log: log, conditions: conditions,
		peers:     condition.NewGroup(log, slog.LevelWarn, "skipped peers", "no longer skipping peers"),
		conflicts: condition.NewGroup(log, slog.LevelError, "operations blocked by a conflict", "operations no longer blocked by a conflict"),
	}
}

func (r *report) skipped(now []backend.Skipped) {
	if !slices.Equal(now, r.last) {
		r.last = slices.Clone(now)
		reasons := make(map[string]condition.Reason, len(now))
		for _, s := range now {
			reasons[s.Subnets.String()] = condition.Reason{Kind: s.Kind, Detail: s.Detail}
		}
		r.peers.Replace(reasons)
	}
	r.flush()
}

// flush logs the group lines that are due.
func (r *report) flush() {
	now := time.Now()
	r.due = time.Time{}
	for _, g := range []*condition.Group{r.peers, r.conflicts} {
		if again := g.Flush(now); again > 0 && (r.due.IsZero() || now.Add(again).Before(r.due)) {
			r.due = now.Add(again)
		}
	}
}

// untilDue returns the time until the next group line is due.
func (r *report) untilDue(now time.Time) time.Duration {
	if r.due.IsZero() {
		return math.MaxInt64
	}
	return r.due.Sub(now)
}

// unread reports that a pass could not read the wanted or the present state.
func (r *report) unread(what string, err error) {
	r.conditions.Begin(condition.Condition{
		ID: uncheckedCondition + what, Severe: true, Text: "reconcile failed, will retry", Ended: "reconcile works again",
		Fields: []any{"reason", what, "err", err},
	})
}

func (r *report) pass(p pass) {
	r.conditions.Replace(uncheckedCondition, nil)
	r.applications(p)
	r.progressAt = time.Time{}
	r.failures(p)
	if p.partial && len(p.conflicts) == 0 {
		return
	}
	conflicts := make(map[string]condition.Reason, len(p.conflicts))
	for _, c := range p.conflicts {
		command, reason := c.Op.String(), condition.Reason{Kind: c.Reason}
		conflicts[command] = reason
		if p.partial {
			r.conflicts.Set(command, reason)
		}
	}
	if !p.partial {
		r.conflicts.Replace(conflicts)
	}
	r.flush()
}

// applications logs what a pass has changed, and begins or ends the condition of a fight.
func (r *report) applications(p pass) {
	if !p.fighting {
		r.conditions.End(fightCondition)
	}
	if p.applied.n == 0 {
		return
	}
	msg := "repaired drift"
	if p.hadDeferred || !p.change.IsEmpty() {
		msg = "programmed the kernel"
	}
	r.log.Info(msg, "ops", p.applied.String(), "example", p.applied.first.String())
	if p.fighting {
		r.conditions.Begin(condition.Condition{
			ID: fightCondition, Severe: true, Text: "another program keeps undoing changes to the kernel, backing off",
			Fields: []any{"ops", p.applied.String(), "example", p.applied.first.String()},
		})
	}
}

func (r *report) failures(p pass) {
	var fresh []failure
	for _, f := range p.failed {
		if f.first {
			fresh = append(fresh, f)
		}
		if r.log.Enabled(context.Background(), slog.LevelDebug) {
			r.log.Debug("operation failed", "command", f.op.String(), "err", f.err)
		}
	}
	if r.failedObjects += len(fresh); len(fresh) > 0 {
		r.conditions.Set(condition.Condition{
			ID: refusedCondition, Text: "failed to apply changes to the kernel, will retry", Ended: "changes to the kernel no longer fail",
			Fields: []any{"count", r.failedObjects, "err", fresh[0].err},
		})
	}
	if len(p.failed) == 0 && p.deferred == 0 && !p.partial {
		r.conditions.End(refusedCondition)
		r.failedObjects = 0
	}
}

// applied logs an operation that was done.
func (r *report) applied(op dataplane.Op) {
	if r.log.Enabled(context.Background(), slog.LevelDebug) {
		r.log.Debug("applied operation", "command", op.String())
	}
}

// progress logs the progress of a long pass every progressEvery.
func (r *report) progress(done, of int) {
	switch now := time.Now(); {
	case r.progressAt.IsZero():
		r.progressAt = now
	case now.Sub(r.progressAt) >= progressEvery:
		r.progressAt = now
		r.log.Info("programming the kernel", "done", done, "total", of)
	}
}

const progressEvery = 2 * time.Second

// tally counts operations by verb and kind.
type tally struct {
	n      int
	first  dataplane.Op
	counts map[OpClass]int
}

func (t *tally) add(op dataplane.Op) {
	if t.n++; t.n == 1 {
		t.first, t.counts = op, map[OpClass]int{}
	}
	t.counts[OpClass{op.Verb, op.Kind}]++
}

// String returns the counts as "+2 route, +2 fdb, -1 route".
func (t *tally) String() string {
	var parts []string
	for _, v := range []struct {
		verb dataplane.Verb
		sign string
	}{{dataplane.Put, "+"}, {dataplane.Set, "~"}, {dataplane.Del, "-"}} {
		for _, kind := range dataplane.Kinds() {
			if n := t.counts[OpClass{v.verb, kind}]; n > 0 {
				parts = append(parts, fmt.Sprintf("%s%d %s", v.sign, n, kind))
			}
		}
	}
	return strings.Join(parts, ", ")
}
