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
		name := d.device(*parts)
		if name == "" {
			return "", page.Counters{}
		}
		// It may wait for a pass that reads. A socket of its own would take ten times as long.
		c, err := d.kernel.Counters(name)
		if err != nil {
			return "", page.Counters{}
		}
		return name, page.Counters{Received: c.Receive.Bytes, Sent: c.Transmit.Bytes}
	}})
	s.Page, s.Events, s.Tick = p, p.Events(), p.Sample
}
