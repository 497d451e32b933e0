//go:build system

package dist_test

import (
	"fmt"
	"strings"
	"testing"

	"flanneld/pkg/machine"
)

// TestSystemFirewalls: the firewalls of Debian 12 and 13, one host each, before and after flanneld, which runs under
// its own unit. What opens the tunnel's port is what the log suggests.
func TestSystemFirewalls(t *testing.T) {
	s := newSystemOn(t, "firewalls", network("vxlan"),
		machine.Kind{Suite: machine.Bookworm, Firewalls: true}, machine.Kind{Suite: machine.Trixie, Firewalls: true})
	s.scenario("installed by the README", func() string {
		s.both(func(h *host) {
			h.unpack("TARBALL")
			h.readme()
		})
		return s.reachable()
	})
	for _, f := range []struct{ name, start, reload, restart, stop string }{
		{"firewalld", "systemctl start firewalld", "firewall-cmd --reload", "systemctl restart firewalld", "systemctl stop firewalld"},
		{"ufw", "ufw --force enable", "ufw reload", "systemctl restart ufw", "ufw disable"},
	} {
		s.scenario(f.name+" started after flanneld", func() string {
			s.both(func(h *host) { h.must(f.start) })
			return s.openPort()
		})
		for _, event := range []struct{ what, command string }{
			{"reloaded", f.reload}, {"restarted", f.restart}, {"there before flanneld", "systemctl restart flanneld"}, {"stopped", f.stop},
		} {
			s.scenario(f.name+" "+event.what, func() string {
				s.both(func(h *host) { h.must(event.command) })
				return s.reachable()
			})
		}
	}
}

// reachable waits until containers reach each other.
func (s *system) reachable() string {
	s.Helper()
	for i, h := range s.hosts {
		other := s.hosts[1-i].docker
		h.eventually(fmt.Sprintf("nsenter --net --target %s ping -c 1 -W 1 %s", h.docker.pid, other.addr))
	}
	return ""
}

// openPort runs the command that each host's log suggests for a closed port, and waits until the log says that it has
// helped.
func (s *system) openPort() string {
	s.Helper()
	commands := make([]string, len(s.hosts))
	s.both(func(h *host) {
		const log = "journalctl -q -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID flanneld)"
		const port = "what peers send to the tunnel's port"
		line := h.eventually(log + ` | grep -v 'no longer' | grep "` + port + `" | tail -n 1 | grep command=`)
		_, command, _ := strings.Cut(line, `command="`)
		command, _, _ = strings.Cut(command, `"`)
		over := h.must(log + ` | grep -c "no longer.*` + port + `" || true`)
		h.must(command)
		h.eventually("[ $(" + log + ` | grep -c "no longer.*` + port + `") -gt ` + over + " ]")
		for i := range s.hosts {
			if s.hosts[i] == h {
				commands[i] = command
			}
		}
	})
	s.reachable()
	if commands[0] != commands[1] {
		s.Errorf("commands %q", commands)
	}
	return commands[0]
}
