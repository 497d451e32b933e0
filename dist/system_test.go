//go:build system

package dist_test

import (
	"os"
	"testing"

	"flanneld/pkg/lab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == toolArg {
		os.Exit(tool(os.Args[2:]))
	}
	os.Exit(lab.Main(m.Run))
}

// The system test installs the release, as the README and guides say, on two hosts with a real
// systemd and docker, and runs scenarios on them. Each scenario prints one line. "make test-system"
// runs it.

// TestSystemVXLAN installs an older release by the README and upgrades it; then it tests every
// other way to start with the shipped unit.
func TestSystemVXLAN(t *testing.T) {
	s := newSystem(t, "vxlan", network("vxlan"))
	s.scenario("installed by the README, older release", func() string {
		s.both(func(h *host) { h.readme("OLD_TARBALL") })
		return s.version()
	})
	s.scenario("docker came first", s.dockerCameFirst)
	s.traffic()
	s.scenario("upgrade in place", s.upgrade)
	s.events()
	s.scenario("hardened unit", s.hardened)
	s.scenario("repairs under the unit", s.repairs)
	s.scenario("the tunnel's port is taken", s.takenPort)
	s.scenario("systemd-networkd configures the device", s.networkd)
	s.scenario("capabilities", s.capabilities)
	s.scenario("watchdog", s.watchdog)
	s.scenario("image instead of the unit", s.image)
	s.otherBackends()
	s.scenario("cloud-config's options.env", s.optionsEnv)
	s.scenario("sysconfig and ExecStartPost", s.sysconfig)
}

// TestSystemUDP tests the unit of guides with the default backend.
func TestSystemUDP(t *testing.T) {
	s := newSystem(t, "udp", `{"Network": "10.42.0.0/16"}`)
	s.scenario("installed by the guides", func() string {
		s.both(func(h *host) {
			h.unpack("TARBALL")
			h.guide()
		})
		return s.version()
	})
	s.traffic()
	s.events()
}

func network(backend string) string {
	return `{"Network": "10.42.0.0/16", "Backend": {"Type": "` + backend + `"}}`
}
