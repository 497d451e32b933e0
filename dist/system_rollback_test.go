//go:build system

package dist_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestSystemRollback replaces flanneld with the original and back, with udp, under our unit and
// under one for the original, in each way that operators use. The original is a program with the
// same behaviour in the kernel and on the wire, at the path in the unit.
func TestSystemRollback(t *testing.T) {
	s := newSystem(t, "rollback", network("udp"))
	h := s.hosts[0]
	s.scenario("installed by the README", func() string {
		s.both(func(h *host) { h.readme("TARBALL") })
		h.feed("/proc/self/exe", "cat >/usr/local/bin/original; chmod +x /usr/local/bin/original")
		h.write("/usr/local/bin/flanneld.old", fmt.Sprintf("#!/bin/sh\nexec /usr/local/bin/original %s original %s %s=%s\n",
			toolArg, h.Addr.Addr(), s.hosts[1].subnet(), s.hosts[1].Addr.Addr()))
		h.must("chmod +x /usr/local/bin/flanneld.old; cp /usr/local/bin/flanneld /usr/local/bin/flanneld.new")
		return s.version()
	})
	for _, unit := range []struct{ name, text, conf string }{
		{"our unit", read(t, "flanneld.service"), fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\n", s.lab.Etcd.Endpoint())},
		{"the original's unit", strings.ReplaceAll(guideUnit, "RequiredBy=docker.service\n", ""),
			fmt.Sprintf("FLANNEL_ETCD=%s\nFLANNEL_ETCD_KEY=/coreos.com/network\n", s.lab.Etcd.Endpoint())},
	} {
		for _, way := range []struct{ name, script string }{
			{"stop, replace, start", "systemctl stop flanneld; %s; systemctl start flanneld"},
			{"replace and restart", "%s; systemctl restart flanneld"},
		} {
			s.scenario(way.name+" with "+unit.name, func() string {
				h.write("/etc/systemd/system/flanneld.service", unit.text)
				h.write("/etc/default/flanneld", unit.conf)
				h.must("systemctl daemon-reload; systemctl reset-failed flanneld; systemctl restart flanneld")
				s.ping()
				put := func(which string) string {
					return "cp /usr/local/bin/flanneld." + which + " /usr/local/bin/next; mv /usr/local/bin/next /usr/local/bin/flanneld"
				}
				back := s.lossOf(func() { h.must(fmt.Sprintf(way.script, put("old"))) })
				h.must("pgrep original && [ \"$(ls /sys/class/net | grep ^flannel)\" = flannel0 ] && systemctl is-active flanneld")
				forth := s.lossOf(func() { h.must(fmt.Sprintf(way.script, put("new"))) })
				h.must("! pgrep original && [ \"$(ls /sys/class/net | grep ^flannel)\" = flannel0 ]")
				return fmt.Sprintf("%v without traffic on the way back, %v on the way forth", back, forth)
			})
		}
	}
	s.scenario("another build and restart with our unit", func() string {
		h.write("/etc/systemd/system/flanneld.service", read(t, "flanneld.service"))
		h.write("/etc/default/flanneld", fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\n", s.lab.Etcd.Endpoint()))
		h.must("systemctl daemon-reload; systemctl restart flanneld")
		s.ping()
		index := h.must("cat /sys/class/net/flannel0/ifindex")
		lost := s.lossOf(func() {
			h.must("cp /usr/local/bin/flanneld.new /usr/local/bin/next; mv /usr/local/bin/next /usr/local/bin/flanneld; systemctl restart flanneld")
		})
		if now := h.must("cat /sys/class/net/flannel0/ifindex"); now != index || lost > 0 {
			t.Errorf("%v without traffic; the device was %s and is %s", lost, index, now)
		}
		return ""
	})
	s.scenario("cleanup", func() string {
		h.must("! flanneld cleanup 2>/tmp/said && grep -q 'refused: there is the flanneld of network 10.42.0.0/16' /tmp/said")
		s.ping()
		others := "iptables-save | grep -v -e FLANNEL -e flanneld -e ^# | sed 's/\\[.*//'"
		before := h.must(others)
		commands := h.must("systemctl stop flanneld; flanneld cleanup -files")
		h.must("! iptables-save | grep FLANNEL && ! ls /sys/class/net | grep flannel && ! ls /run/flannel/subnet.env* && ip link show docker0")
		if now := h.must(others); now != before {
			t.Errorf("rules of others were\n%s\nand are\n%s", before, now)
		}
		h.must("systemctl start flanneld; ip link show flannel0") // as on a new host
		return fmt.Sprint(strings.Count(commands, "\n")+1, " commands")
	})
}

// lossOf returns how long containers did not reach each other during an action, by pings every 10
// ms.
func (s *system) lossOf(do func()) time.Duration {
	s.Helper()
	const each = 10 * time.Millisecond
	h, to := s.hosts[0], s.hosts[1].docker
	done := make(chan string, 1)
	go func() {
		out, err := h.Run(s.Context(), fmt.Sprintf("nsenter -n -t %s ping -i 0.01 -w 3 -q %s", h.docker.pid, to.addr))
		if err != nil {
			out = err.Error()
		}
		done <- out
	}()
	h.eventually("pgrep -x ping")
	do()
	out := <-done
	m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(out)
	if m == nil {
		s.Fatalf("ping: %s", out)
	}
	sent, _ := strconv.Atoi(m[1])
	received, _ := strconv.Atoi(m[2])
	s.ping()
	return time.Duration(sent-received) * each
}

// original is the original's udp backend for peers given as SUBNET=PUBLICIP. It ends at SIGTERM.
func original(args []string) error {
	env, err := os.ReadFile("/run/flannel/subnet.env")
	if err != nil {
		return err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(env)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	network, err1 := netip.ParsePrefix(values["FLANNEL_NETWORK"])
	subnet, err2 := netip.ParsePrefix(values["FLANNEL_SUBNET"])
	addr, err3 := netip.ParseAddr(args[0])
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	peers := map[netip.Prefix]netip.Addr{}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		peer, err1 := netip.ParsePrefix(key)
		ip, err2 := netip.ParseAddr(value)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		peers[peer] = ip
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	o, err := lab.StartOriginalUDP(network, subnet.Masked(), addr, 1500, peers)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return err
	}
	<-ctx.Done()
	return o.Close()
}
