package etcdv2

import "time"

// SetPoll shortens the long-poll, whose time is above the patience of a test.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }
