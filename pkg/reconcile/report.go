package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/pace"
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

	due        *pace.Alarm // for the next group line
	progressAt time.Time   // time of the last progress line of the present pass
}

func newReport(log *slog.Logger, conditions *condition.List) *report {
	return &report{
		log: log, conditions: conditions, due: pace.NewAlarm(),
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
	for _, g := range []*condition.Group{r.peers, r.conflicts} {
		if again := g.Flush(time.Now()); again > 0 {
			r.due.SetWithin(again)
		}
	}
}

// unread reports that a pass could not read the wanted or the present state.
func (r *report) unread(what string, err error) {
	r.conditions.Begin(condition.Condition{
		ID: uncheckedCondition + what, Severity: condition.Severe, Text: "reconcile failed, will retry", Ended: "reconcile works again",
		Fields: []any{"reason", what, "err", err},
	})
}

func (r *report) pass(p pass) {
	r.conditions.Replace(uncheckedCondition, nil)
	r.applications(p)
	r.progressAt = time.Time{}
	r.failures(p)
	conflicts := make(map[string]condition.Reason, len(p.conflicts))
	for _, c := range p.conflicts {
		conflicts[c.Op.String()] = condition.Reason{Kind: c.Reason}
	}
	if p.partial {
		for command, reason := range conflicts {
			r.conflicts.Set(command, reason)
		}
	} else {
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
	fields := []any{"ops", p.applied.String(), "example", p.applied.first.String()}
	r.log.Info(msg, fields...)
	if p.fighting {
		r.conditions.Begin(condition.Condition{
			ID: fightCondition, Severity: condition.Severe, Text: "another program keeps undoing changes to the kernel, backing off", Fields: fields,
		})
	}
}

func (r *report) failures(p pass) {
	var fresh []error
	for _, f := range p.failed {
		if f.first {
			fresh = append(fresh, f.err)
		}
		r.debug("operation failed", f.op, "err", f.err)
	}
	if r.failedObjects += len(fresh); len(fresh) > 0 {
		r.conditions.Set(condition.Condition{
			ID: refusedCondition, Text: "failed to apply changes to the kernel, will retry", Ended: "changes to the kernel no longer fail",
			Fields: []any{"count", r.failedObjects, "err", fresh[0]},
		})
	}
	if len(p.failed) == 0 && p.deferred == 0 && !p.partial {
		r.conditions.End(refusedCondition)
		r.failedObjects = 0
	}
}

// debug logs an operation; its command is composed only if it is logged.
func (r *report) debug(msg string, op dataplane.Op, fields ...any) {
	if r.log.Enabled(context.Background(), slog.LevelDebug) {
		r.log.Debug(msg, append([]any{"command", op.String()}, fields...)...)
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
	for verb, sign := range []string{dataplane.Put: "+", dataplane.Set: "~", dataplane.Del: "-"} {
		for _, kind := range dataplane.Kinds() {
			if n := t.counts[OpClass{dataplane.Verb(verb), kind}]; n > 0 {
				parts = append(parts, fmt.Sprintf("%s%d %s", sign, n, kind))
			}
		}
	}
	return strings.Join(parts, ", ")
}
