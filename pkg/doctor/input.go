package doctor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Input is something that checks read: it is read when the first check asks for it, once for all of
// them, and not longer than its time limit.
type Input[T any] struct {
	name  string // for the reason why there is no value
	run   context.Context
	limit time.Duration
	read  func(context.Context) (T, error)

	once  sync.Once
	done  chan struct{} // closed when value and err are set
	late  context.Context
	value T
	err   error
}

// newInput returns an input that read reads, which should return when its context ends. ctx is that
// of the run.
func newInput[T any](ctx context.Context, name string, limit time.Duration, read func(context.Context) (T, error)) *Input[T] {
	return &Input[T]{name: name, run: ctx, limit: limit, read: read, done: make(chan struct{})}
}

// Given returns an input with a value.
func Given[T any](value T) *Input[T] {
	i := &Input[T]{done: make(chan struct{}), value: value, late: context.Background()}
	i.once.Do(func() { close(i.done) })
	return i
}

// Missing returns an input that could not be read.
func Missing[T any](err error) *Input[T] {
	i := Given(*new(T))
	i.err = err
	return i
}

// Get returns the value, or the reason why there is none. It returns when ctx or the input's time
// limit ends, even if the reading hangs.
func (i *Input[T]) Get(ctx context.Context) (T, error) {
	if i == nil {
		return *new(T), errNotRead
	}
	i.once.Do(i.start)
	select {
	case <-i.done:
		return i.value, i.err
	default:
	}
	select {
	case <-i.done:
		return i.value, i.err
	case <-i.late.Done():
		return *new(T), fmt.Errorf("%s: no answer within %s", i.name, i.limit)
	case <-ctx.Done():
		return *new(T), fmt.Errorf("%s: no answer in time", i.name)
	}
}

// errNotRead is the reason why an input has no value that nobody has set.
var errNotRead = errors.New("was not read")

func (i *Input[T]) start() {
	ctx, cancel := context.WithTimeout(i.run, i.limit)
	i.late = ctx
	go func() {
		defer cancel()
		defer close(i.done)
		defer func() {
			if p := recover(); p != nil {
				i.err = fmt.Errorf("%s: reading it failed, please report it: %v at %s", i.name, p, failedAt(debug.Stack()))
			}
		}()
		i.value, i.err = i.read(ctx)
		if i.err != nil && ctx.Err() != nil {
			i.err = fmt.Errorf("%s: no answer within %s", i.name, i.limit)
		}
	}()
}

// failedAt returns the place of a panic in a stack: the first line with a file after the runtime's.
func failedAt(stack []byte) string {
	_, after, _ := strings.Cut(string(stack), "panic(")
	lines := strings.Split(after, "\n")
	for _, l := range lines[min(2, len(lines)):] {
		if strings.HasPrefix(l, "\t") && !strings.Contains(l, "/runtime/") {
			place, _, _ := strings.Cut(strings.TrimSpace(l), " +")
			return place[strings.LastIndexByte(place, '/')+1:]
		}
	}
	return "an unknown place"
}

// oneLine returns a text with each run of white space as one space.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
