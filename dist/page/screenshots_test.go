package page

import (
	"testing"
	"time"

	"flanneld/pkg/status"
)

// broken returns a source with a peer of each fault, conditions and repairs.
func broken() *source {
	s := healthy(12)
	s.set(func(d *status.Document) {
		for i, state := range []string{"failing", "lossy", "skipped", "unprogrammed", "unknown", "unprobed"} {
			fault(&d.Peers[2*i+1], state)
		}
		d.Conditions = []status.Condition{
			{ID: "docker-subnet", Severity: status.Warning, Since: time.Now().Add(-2 * time.Minute),
				Text:   "docker bridge is not on this host's subnet, so other hosts cannot reach its containers device=docker0 addr=172.17.0.1/16 subnet=10.42.7.0/24",
				Remedy: "systemctl restart docker"},
			{ID: "probe", Severity: status.Notice, Since: time.Now().Add(-9 * time.Minute), Text: "name servers are in the overlay addr=10.42.3.3"},
		}
		d.Repairs = []status.Repair{
			{At: time.Now().Add(-200 * time.Second), What: "+1 route", Example: "ip route replace 10.42.4.0/24 via 10.42.4.0 dev flannel.1 onlink src 10.42.0.0"},
			{At: time.Now().Add(-3 * time.Hour), What: "packet filter: 2 changes", Example: "nft add rule ip flannel-ipv4 forward ip saddr 10.42.0.0/16 accept"},
		}
		d.Drift = pointer(1)
	})
	return s
}

// TestScreens takes pictures of a healthy network and of one with faults, on each kind of screen.
// Nothing is wider than the screen.
func TestScreens(t *testing.T) {
	for name, s := range map[string]*source{"broken": broken(), "healthy": healthy(4), "thousand": healthy(1000)} {
		url, _ := s.serve(t)
		url = record(t, url)
		for _, on := range []screen{desktop(), phone()} {
			for _, on.dark = range []bool{false, true} {
				t.Run(name+"-"+on.String(), func(t *testing.T) {
					p := open(t, url, on)
					p.text("#live", "live")
					if wide := eval[int64](p, "document.documentElement.scrollWidth"); wide > on.width {
						t.Errorf("it is %d pixels wide", wide)
					}
					p.screenshot(name+"-"+on.String(), name != "thousand")
				})
			}
		}
	}
}

// TestScreensOfDetails takes pictures of what is not seen at first: the details of a peer, and a
// connection that is lost.
func TestScreensOfDetails(t *testing.T) {
	url, stop := broken().serve(t)
	url = record(t, url)
	var tabs []*tab
	for _, on := range []screen{desktop(), phone()} {
		p := open(t, url, on)
		p.text("#live", "live")
		p.click("#rows tr:not(.space) button")
		p.text("#details", "does not answer probes")
		p.screenshot("details-"+on.String(), false)
		p.expectErrors()
		tabs = append(tabs, p)
	}
	stop()
	for _, p := range tabs {
		p.text("#lost", "is lost")
	}
	tabs[0].screenshot("lost-1280-light", false)
}
