package reconcile

import (
	"fmt"
	"log/slog"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
)

// report says in the log what the passes do: one line for each that changed
// something, each trouble once when it begins, and once that it is over.
type report struct {
	log       *slog.Logger
	left      map[backend.Skipped]bool
	conflicts map[dataplane.Conflict]bool
	trouble   string // what was broken in the last pass
	failing   int    // objects that failed since it was last well
}

func newReport(log *slog.Logger) *report {
	return &report{log: log, left: map[backend.Skipped]bool{}, conflicts: map[dataplane.Conflict]bool{}}
}

func (r *report) skipped(now []backend.Skipped) {
	left := make(map[backend.Skipped]bool, len(now))
	for _, s := range now {
		left[s] = true
		if !r.left[s] {
			r.log.Warn("peer left out", "subnet", s.Subnet, "reason", s.Reason)
		}
	}
	r.left = left
}

func (r *report) broken(what string, err error) {
	if r.trouble != what {
		r.log.Error("the kernel is not checked until this works again", "trouble", what, "err", err)
	}
	r.trouble = what
}

func (r *report) pass(p pass) {
	if r.trouble != "" {
		r.log.Info("the kernel is checked again", "after_trouble", r.trouble)
		r.trouble = ""
	}
	if len(p.applied) > 0 {
		msg := "repaired what was changed behind our back"
		if p.wanted {
			msg = "programmed the kernel"
		}
		r.log.Info(msg, "ops", Summary(p.applied), "first", p.applied[0].String())
		for _, op := range p.applied {
			r.log.Debug("applied", "op", op.String())
		}
	}
	r.failures(p)
	for _, op := range p.fights {
		r.log.Error("something else on this host keeps undoing our work; slowing down", "object", op.Object(), "op", op.String())
	}
	conflicts := make(map[dataplane.Conflict]bool, len(p.conflicts))
	for _, c := range p.conflicts {
		conflicts[c] = true
		if !r.conflicts[c] {
			r.log.Error("left undone", "op", c.Op.String(), "reason", c.Reason)
		}
	}
	r.conflicts = conflicts
}

func (r *report) failures(p pass) {
	var fresh []failure
	for _, f := range p.failed {
		if f.first {
			fresh = append(fresh, f)
		}
		r.log.Debug("failed", "op", f.op.String(), "err", f.err)
	}
	if len(fresh) > 0 {
		r.log.Warn("the kernel refused; trying again", "failed", len(fresh), "err", fresh[0].err)
	}
	r.failing += len(fresh)
	if r.failing > 0 && len(p.failed) == 0 && p.held == 0 {
		r.log.Info("nothing fails any more", "failed_before", r.failing)
		r.failing = 0
	}
}

// Summary counts operations by verb and kind: "+2 route, +2 fdb, -1 route".
func Summary(ops []dataplane.Op) string {
	type class struct {
		verb dataplane.Verb
		kind dataplane.Kind
	}
	counts := map[class]int{}
	for _, op := range ops {
		counts[class{op.Verb, op.Kind}]++
	}
	names := []string{"link", "sysctl", "address", "fdb", "neighbour", "tunnel entry", "route"}
	signs := []string{"+", "~", "-"}
	var parts []string
	for verb, sign := range signs {
		for kind, name := range names {
			if n := counts[class{dataplane.Verb(verb), dataplane.Kind(kind)}]; n > 0 {
				parts = append(parts, fmt.Sprintf("%s%d %s", sign, n, name))
			}
		}
	}
	return strings.Join(parts, ", ")
}
