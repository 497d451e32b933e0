package etcdv3

import "time"

// SetPoll shortens the wait of a quiet watch, which is above the patience of a test.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }

// SetPage makes listings be read by fewer keys at once.
func (r *Registry) SetPage(n int64) { r.page = n }

// NewSmall makes a Registry that takes only small answers.
func NewSmall(o Options, maxMessage int) (*Registry, error) { return newRegistry(o, maxMessage) }
