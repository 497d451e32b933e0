//go:build system

package dist_test

import (
	"os"
	"strings"
	"testing"
)

// TestSystemDeb checks configuration and network after installation, upgrade and removal of the
// package. The environment names an older package and the present one.
func TestSystemDeb(t *testing.T) {
	s := newSystem(t, "deb", network("vxlan"))
	const conf = "/etc/default/flanneld"
	config := "FLANNELD_ETCD_ENDPOINTS=" + s.lab.Etcd.Endpoint() + "\nFLANNELD_IP_MASQ=true\n"

	s.scenario("installed", func() string {
		s.both(func(h *host) {
			h.install("OLD_DEB")
			if state := h.must("systemctl is-enabled flanneld || true; systemctl is-active flanneld || true"); state != "disabled\ninactive" {
				t.Errorf("before anything is configured: %q", state)
			}
			h.write(conf, config)
			h.must("systemctl enable --now flanneld")
			h.must("mkdir -p $(dirname " + dockerDropIn + "); cp /usr/share/doc/flanneld/examples/docker-opts/10-flannel.conf " + dockerDropIn)
			h.restartDocker()
			h.run()
		})
		s.ping()
		return s.version()
	})
	s.scenario("upgraded in a transfer", func() string {
		before := s.version()
		note := s.replace(gigabyte/2, func(h *host) { h.install("DEB") })
		after := s.version()
		if before == after {
			t.Errorf("version %s before and after", before)
		}
		s.left(conf, config)
		return before + " to " + after + ", " + note
	})
	s.scenario("removed in a transfer", func() string {
		transfer := s.transfer(gigabyte / 2)
		s.both(func(h *host) { h.must("dpkg --remove flanneld 2>&1") })
		transfer.running()
		s.both(func(h *host) {
			h.must("! systemctl is-active flanneld && ! test -e /usr/bin/flanneld && ! pgrep flanneld")
		})
		note := transfer.wait()
		s.left(conf, config)
		return note
	})
	s.scenario("purged", func() string {
		s.both(func(h *host) {
			h.must("dpkg --purge flanneld 2>&1; ! test -e " + conf + "; ! test -e /run/flannel")
			h.network()
		})
		s.ping()
		return "config removed, network left"
	})
}

// install installs a package whose file is in an environment variable.
func (h *host) install(variable string) {
	h.system.Helper()
	h.feed(os.Getenv(variable), "cat >/tmp/flanneld.deb; dpkg --install /tmp/flanneld.deb 2>&1")
}

// left checks that configuration and network exist.
func (s *system) left(conf, config string) {
	s.Helper()
	s.both(func(h *host) {
		if now := h.must("cat " + conf); now != strings.TrimSpace(config) {
			s.Errorf("%s is\n%s", conf, now)
		}
		h.must("test -s /run/flannel/subnet.env")
		h.network()
	})
	s.ping()
}

// network checks flanneld's objects in the kernel.
func (h *host) network() {
	h.system.Helper()
	h.must("ip link show flannel.1; ip route show dev flannel.1 | grep -q onlink; iptables -S FLANNEL-FWD; iptables -t nat -S FLANNEL-POSTRTG")
}
