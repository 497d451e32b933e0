package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/dataplane"
)

// TestMissingIsTold: after each pass, missing objects that this host itself needs are reported,
// including deferred ones, and only the link if the others are missing because of it.
func TestMissingIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		var told []string
		f.cfg.Missing = func(missing []Missing) {
			told = told[:0]
			for _, m := range missing {
				told = append(told, fmt.Sprint(m.Op.Object(), ": ", m.Err, m.Reason))
			}
		}
		tells := func(want ...string) {
			t.Helper()
			if got := strings.Join(told, "\n"); got != strings.Join(want, "\n") {
				t.Errorf("told\n%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
		}
		whole := dataplane.RouteKey{Dst: f.cfg.Network, Link: "flannel.1"}
		f.wantRoutes(1)
		f.want.Routes[whole] = dataplane.Route{Proto: dataplane.ProtoBoot}
		f.kernel.refuse["link flannel.1"] = errors.New("address already in use")
		f.kernel.refuse[dataplane.KindRoute.Put(whole, dataplane.Route{}).Object()] = errors.New("no such device")
		if f.Pass() {
			t.Error("all is right without the link")
		}
		tells("link flannel.1: address already in use")
		f.Reread()
		f.Pass() // before it is tried again
		tells("link flannel.1: address already in use")

		delete(f.kernel.refuse, "link flannel.1")
		f.run(t, time.Minute)
		tells("route " + whole.Dst.String() + " dev flannel.1: no such device")
		if f.Pass() {
			t.Error("all is right without the route to the network")
		}
		clear(f.kernel.refuse)
		f.run(t, time.Minute)
		tells()
		if !f.Pass() {
			t.Error("something is still missing")
		}

		// Somebody's interface is in the network's place.
		delete(f.kernel.Routes, whole)
		f.kernel.Routes[dataplane.RouteKey{Dst: whole.Dst, Link: "eth0"}] = dataplane.Route{Proto: dataplane.ProtoKernel}
		f.Reread()
		if f.Pass() {
			t.Error("all is right although something is in the place of the route")
		}
		tells("route " + whole.Dst.String() + " dev flannel.1: <nil>an interface address of dev eth0 covers the same destination")
		if f.said("failed to apply changes") != 0 || f.said("operations blocked by a conflict") != 0 {
			t.Errorf("said twice:\n%s", &f.log)
		}
	})
}
