package daemon

import (
	"flanneld/pkg/api"
	"flanneld/pkg/page"
)

// addPage adds the page to the sources of answers.
func (d *daemon) addPage(s *api.Sources) {
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
	s.Page, s.Events, s.Tick = p, p.Events(), p.Sample
}
