//go:build system

package dist_test

import "flanneld/pkg/lab/logs"

// said is a script that finds a line in the log of the present run of flanneld.
func said(words string) string {
	return "journalctl -q -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID flanneld) | grep '" + words + "'"
}

// takenPort makes another user's process listen on the tunnel's port. The unit hides the process,
// so the log must have the user.
func (s *system) takenPort() string {
	s.Helper()
	h := s.hosts[0]
	h.must("systemctl stop flanneld; ip link del flannel.1; systemd-run -q --unit=holder --uid=daemon " +
		`perl -e 'use IO::Socket; my $$s = IO::Socket::INET->new(Proto => "udp", LocalPort => 8472) or die; sleep'`)
	h.eventually("grep -q ':2118 ' /proc/net/udp")
	h.must("systemctl restart --no-block flanneld")
	line := h.eventually(said("reason=\"a process of uid 1, or the kernel has UDP port 8472"))
	h.must("[ $(systemctl show -P ActiveState flanneld) = activating ]")
	h.must("systemctl stop holder")
	h.eventually("systemctl is-active flanneld")
	h.eventually(said("no longer: failed to set up the overlay"))
	s.ping()
	return logs.Command(line)
}

// dockerCameFirst checks what was logged about docker, which was started before flanneld, and that
// it is over after the suggested restart.
func (s *system) dockerCameFirst() string {
	s.Helper()
	h := s.hosts[0]
	line := h.must("journalctl -q -o cat -u flanneld | grep 'WARN.*docker bridge is not on this host.s subnet.*device=docker0 addr=172.17.0.1/16'")
	h.eventually("journalctl -q -o cat -u flanneld | grep 'no longer: docker bridge'")
	return logs.Command(line)
}
