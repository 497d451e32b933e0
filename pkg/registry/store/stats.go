package store

import (
	"context"
	"errors"
	"maps"
	"sync"

	"flanneld/pkg/registry"
)

// Stats is what was asked of etcd since Open, and what came of it. What was asked of an API that
// was not chosen, and did not matter for that, does not count.
type Stats struct {
	Calls map[Call]uint64
}

// Call is an operation with its result.
type Call struct {
	Op     Op
	Result Result
}

// Op is an operation of a registry.Registry.
type Op string

// Operations of a registry.Registry.
const (
	OpConfig  Op = "config"
	OpList    Op = "list"
	OpGet     Op = "get"
	OpWatch   Op = "watch"
	OpCreate  Op = "create"
	OpUpdate  Op = "update"
	OpRelease Op = "release"
)

// Result is what came of an operation.
type Result string

// Results of an operation.
const (
	Done     Result = "done"     // there was an answer, such as that there is no config
	Conflict Result = "conflict" // somebody else has written what was to be written
	Denied   Result = "denied"
	Failed   Result = "failed" // there was no answer, or one of no use
)

// stats counts calls.
type stats struct {
	mu    sync.Mutex
	calls map[Call]uint64
}

// count counts a call, unless its caller has ended it.
func (s *stats) count(ctx context.Context, op Op, err error) {
	if err != nil && ctx.Err() != nil {
		return
	}
	r := Failed
	switch {
	case errors.Is(err, registry.ErrConflict):
		r = Conflict
	case errors.Is(err, registry.ErrDenied):
		r = Denied
	case answered(err):
		r = Done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[Call{op, r}]++
}

// Stats returns what was counted so far. It may be called from any goroutine.
func (a Registry) Stats() Stats {
	a.stats.mu.Lock()
	defer a.stats.mu.Unlock()
	return Stats{Calls: maps.Clone(a.stats.calls)}
}
