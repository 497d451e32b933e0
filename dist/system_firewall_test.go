//go:build system

package dist_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/logs"
	"flanneld/pkg/lab/machine"
)

// TestSystemFirewalls tests the firewalls of Debian 12 and 13, on one host each, started before and
// after flanneld, which runs in its unit. The tunnel's port is opened with the command in the log.
func TestSystemFirewalls(t *testing.T) {
	s := newSystemOn(t, "firewalls", network("vxlan"),
		machine.Kind{Suite: machine.Bookworm, Managers: true}, machine.Kind{Suite: machine.Trixie, Managers: true})
	s.scenario("installed by the README", func() string {
		s.both(func(h *host) { h.readme("TARBALL") })
		return s.reachable()
	})
	s.scenario("NetworkManager configures the device", s.networkManager)
	for _, f := range []struct{ name, start, open, reload, restart, stop string }{
		{"firewalld", "systemctl start firewalld", "firewall-cmd --zone=public --add-port=8472/udp", "firewall-cmd --reload", "systemctl restart firewalld", "systemctl stop firewalld"},
		{"ufw", "ufw --force enable", "ufw allow 8472/udp", "ufw reload", "systemctl restart ufw", "ufw disable"},
	} {
		s.scenario(f.name+" started after flanneld", func() string {
			s.both(func(h *host) { h.must(f.start) })
			s.closedPort(f.name, f.open)
			return s.openPort()
		})
		for _, event := range []struct{ what, command string }{
			{"reloaded", f.reload}, {"restarted", f.restart}, {"there before flanneld", "systemctl restart flanneld"},
		} {
			s.scenario(f.name+" "+event.what, func() string {
				s.both(func(h *host) { h.must(event.command) })
				return s.reachable()
			})
		}
		if f.name == "firewalld" {
			s.scenario("firewalld's own table", s.trusted)
			s.scenario("image beside firewalld", s.imageBesideFirewalld)
		}
		s.scenario(f.name+" stopped", func() string {
			s.both(func(h *host) { h.must(f.stop) })
			return s.reachable()
		})
	}
}

const trusts = "firewall-cmd -q --zone=trusted --query-source=10.42.0.0/16"

// trusted checks what the firewalld of Debian 13 was asked for, and that cleanup removes it.
func (s *system) trusted() string {
	s.Helper()
	h := s.hosts[1]
	h.must("nft list table inet firewalld | grep -q 'flags owner'; ! nft add rule inet firewalld filter_FORWARD drop 2>/dev/null")
	h.must(trusts + " && ! firewall-cmd -q --permanent --zone=trusted --query-source=10.42.0.0/16")
	out := h.must("systemctl stop flanneld; flanneld cleanup; ! " + trusts)
	const command = "firewall-cmd --zone=trusted --remove-source=10.42.0.0/16"
	if !strings.Contains(out, command) {
		s.Errorf("cleanup does not say %q:\n%s", command, out)
	}
	h.must("systemctl start flanneld")
	s.reachable()
	return "trusted over D-Bus, undone by cleanup"
}

// imageBesideFirewalld runs the image without D-Bus, then with the D-Bus of the host.
func (s *system) imageBesideFirewalld() string {
	s.Helper()
	h := s.hosts[1]
	h.must("systemctl stop flanneld; firewall-cmd --zone=trusted --remove-source=10.42.0.0/16")
	h.runImage("")
	command := logs.Command(h.eventually("docker logs flanneld 2>&1 | grep 'firewalld may drop overlay packets'"))
	h.must(command)
	h.eventually("docker logs flanneld 2>&1 | grep 'no longer: firewalld may drop overlay packets'")
	s.reachable()
	h.must("docker rm -f flanneld; firewall-cmd --zone=trusted --remove-source=10.42.0.0/16")
	h.runImage("-v /run/dbus:/run/dbus")
	h.eventually(trusts)
	s.reachable()
	h.must("docker rm -f flanneld; systemctl start flanneld")
	s.reachable()
	return command
}

// reachable waits until containers reach each other, and returns how long that took.
func (s *system) reachable() string {
	s.Helper()
	begun := time.Now()
	for i, h := range s.hosts {
		other := s.hosts[1-i].docker
		h.eventually(fmt.Sprintf("nsenter --net --target %s ping -c 1 -W 1 %s", h.docker.pid, other.addr))
	}
	return fmt.Sprintf("reachable after %.1f s", time.Since(begun).Seconds())
}

// openPort runs the command that each host's log suggests for a closed port, and waits for the line
// that the condition is over.
func (s *system) openPort() string {
	s.Helper()
	commands := make([]string, len(s.hosts))
	s.both(func(h *host) {
		const log = "journalctl -q -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID flanneld)"
		const port = "drops packets to the tunnel port"
		line := h.eventually(fmt.Sprintf(`begun=$(%[1]s | grep -v "no longer" | grep "%[2]s" || true)
			over=$(%[1]s | grep -c "no longer.*%[2]s" || true)
			[ $(echo "$begun" | grep -c command=) -gt $over ] && echo "$begun" | tail -n 1`, log, port))
		command := logs.Command(line)
		over := h.must(log + ` | grep -c "no longer.*` + port + `" || true`)
		h.must(command)
		h.eventually("[ $(" + log + ` | grep -c "no longer.*` + port + `") -gt ` + over + " ]")
		commands[slices.Index(s.hosts, h)] = command
	})
	s.reachable()
	if commands[0] != commands[1] {
		s.Errorf("commands %q", commands)
	}
	return commands[0]
}
