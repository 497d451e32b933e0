package store

import (
	"context"
	"errors"
	"maps"
	"sync"

	"flanneld/pkg/registry"
)

// Stats has the number of calls since Open by operation and result. Calls of an API that was not
// chosen are not counted if they did not matter for the choice.
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
	OpConfig      Op = "config"
	OpWriteConfig Op = "write config" // by an operator
	OpList        Op = "list"
	OpGet         Op = "get"
	OpWatch       Op = "watch"
	OpCreate      Op = "create"
	OpUpdate      Op = "update"
	OpRelease     Op = "release"
)

// Result is the result of an operation.
type Result string

// Results of an operation.
const (
	Done     Result = "done"     // an answer, including that there is no config
	Conflict Result = "conflict" // another client has changed the key
	Denied   Result = "denied"
	Failed   Result = "failed" // no answer, or an unusable one
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
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrConfigChanged):
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

// Stats returns the present counts. It may be called from any goroutine.
func (a Registry) Stats() Stats {
	a.stats.mu.Lock()
	defer a.stats.mu.Unlock()
	return Stats{Calls: maps.Clone(a.stats.calls)}
}
