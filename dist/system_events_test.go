//go:build system

package dist_test

import (
	"fmt"
	"strconv"
	"strings"
)

// events are the events in the life of hosts.
func (s *system) events() {
	s.scenario("dockerd restart", s.restartDocker)
	s.scenario("flanneld restart in a transfer", func() string {
		return s.replace(gigabyte, func(h *host) { h.must("systemctl restart flanneld") })
	})
	s.scenario("flanneld kill -9 in a transfer", func() string {
		return s.replace(gigabyte, func(h *host) { h.must("systemctl kill -s KILL flanneld") })
	})
	s.scenario("reboot of one host", s.reboot)
}

func (s *system) restartDocker() string {
	s.Helper()
	s.both(func(h *host) {
		h.restartDocker()
		h.find()
	})
	s.ping()
	return s.published()
}

// replace makes another flanneld take over on both hosts during a transfer of n bytes.
func (s *system) replace(n int64, do func(*host)) string {
	s.Helper()
	t := s.transfer(n)
	s.hosts[1].eventually("nsenter -n -t " + s.hosts[1].docker.pid + " ss -Htn state established sport = 5001 | grep -q .")
	var pids []int
	for _, h := range s.hosts {
		pids = append(pids, h.pid())
	}
	for _, h := range s.hosts {
		t.running()
		do(h)
	}
	for i, h := range s.hosts {
		h.replaced(pids[i])
	}
	return t.wait()
}

// upgrade replaces the older release with the new one.
func (s *system) upgrade() string {
	s.Helper()
	before := s.version()
	note := s.replace(gigabyte, func(h *host) {
		h.unpack("TARBALL")
		h.must("systemctl restart flanneld")
	})
	after := s.version()
	if before == after {
		s.Errorf("version %s before and after", before)
	}
	return fmt.Sprintf("%s to %s, %s", before, after, note)
}

// reboot reboots the second host. Docker must wait for flanneld, which must keep its subnet.
func (s *system) reboot() string {
	s.Helper()
	h := s.hosts[1]
	before := h.subnet()
	if err := h.Reboot(s.Context()); err != nil {
		s.Fatal(err)
	}
	h.find()
	if now := h.subnet(); now != before {
		s.Errorf("subnet %s, was %s", now, before)
	}
	ready := h.stamp("flanneld", "ActiveEnterTimestampMonotonic")
	start := h.stamp("docker", "ExecMainStartTimestampMonotonic")
	if ready == 0 || start < ready {
		s.Errorf("docker started at %d µs, flanneld was READY at %d", start, ready)
	}
	s.ping()
	s.published()
	return fmt.Sprintf("subnet %s kept, docker %d ms after READY", before, (start-ready)/1000)
}

// stamp returns a time in the state of a service, in microseconds.
func (h *host) stamp(service, property string) int {
	h.system.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(h.must("systemctl show -P " + property + " " + service)))
	if err != nil {
		h.system.Fatal(err)
	}
	return n
}
