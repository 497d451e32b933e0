package daemon

import (
	"context"
	"sync"

	"flanneld/pkg/api"
	"flanneld/pkg/page"
)

// servePage adds the page to the sources of answers, and keeps it until ctx ends.
func (d *daemon) servePage(ctx context.Context, tasks *sync.WaitGroup, s *api.Sources) {
	p := page.New(page.Config{Status: d.status, Device: func() (string, page.Counters) {
		parts := d.parts.Load()
		if parts == nil {
			return "", page.Counters{}
		}
		name, c := d.device(*parts)
		if c == nil {
			return "", page.Counters{}
		}
		return name, page.Counters{Received: c.Receive.Bytes, Sent: c.Transmit.Bytes}
	}})
	s.Page, s.Events = p, p.Events()
	tasks.Go(func() { p.Run(ctx) })
}
