//go:build system

package dist_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"flanneld/pkg/lab/logs"
)

// hardened checks what the unit permits flanneld, and that it is enough.
func (s *system) hardened() string {
	s.Helper()
	h := s.hosts[0]
	pid := h.pid()
	status := h.must(fmt.Sprintf("cat /proc/%d/status", pid))
	const capabilities = 1<<2 | 1<<12 | 1<<13 // DAC_READ_SEARCH, NET_ADMIN, NET_RAW
	for _, line := range []string{
		fmt.Sprintf("CapEff:\t%016x", capabilities), fmt.Sprintf("CapBnd:\t%016x", capabilities), "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(status, line+"\n") {
			s.Errorf("/proc/PID/status lacks %q:\n%s", line, status)
		}
	}
	h.must("iptables -S FLANNEL-FWD; iptables -t nat -S FLANNEL-POSTRTG")
	if v := h.must("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra"); v != "0" {
		s.Errorf("accept_ra of flannel.1 is %s", v)
	}
	for _, path := range []string{"/etc/x", "/usr/local/bin/x", "/root/x", "/run/x", "/proc/sys/kernel/core_pattern"} {
		h.must(fmt.Sprintf("! nsenter -m -t %d sh -c ': >>%s' 2>/dev/null", pid, path))
	}
	h.must("systemctl stop flanneld; test -s /run/flannel/subnet.env; systemctl start flanneld")
	out := h.must("systemd-analyze security --offline=true --no-pager /etc/systemd/system/flanneld.service")
	_, figure, _ := strings.Cut(out, "Overall exposure level for flanneld.service: ")
	figure, _, _ = strings.Cut(figure, " ")
	exposure, err := strconv.ParseFloat(figure, 64)
	if err != nil || exposure > 2.5 {
		s.Errorf("exposure %q, %v", figure, err)
	}
	return "exposure " + figure
}

// repairs checks that changes by others are repaired at once and not by the next regular check, so
// the unit permits flanneld to receive notifications. Only systemd can create /run/flannel itself
// again.
func (s *system) repairs() string {
	s.Helper()
	h := s.hosts[0]
	const within = "timeout 5 sh -c 'until %s; do sleep 0.1; done'"
	for _, d := range []struct{ do, back string }{
		{"ip link del flannel.1", "ip link show flannel.1"},
		{"iptables -F FLANNEL-FWD", "iptables -S FLANNEL-FWD | grep ACCEPT"},
		{"rm /run/flannel/subnet.env", "test -s /run/flannel/subnet.env"},
		{"rm /run/flannel/subnet.env.lease", "test -s /run/flannel/subnet.env.lease"},
	} {
		for range 2 { // a regular check may repair the first one
			h.must(d.do)
			h.must(fmt.Sprintf(within, d.back) + " >/dev/null 2>&1")
		}
	}
	h.must("rm -r /run/flannel")
	command := logs.Command(h.eventually(said("failed to write subnet file, will retry.*command=")))
	h.must(command)
	h.must("test -s /run/flannel/subnet.env && test -s /run/flannel/subnet.env.lease")
	s.ping()
	return command
}

// capabilities checks that each capability of the unit is needed, and that the other iptables works
// too.
func (s *system) capabilities() string {
	s.Helper()
	h := s.hosts[0]
	const dropIn = "/etc/systemd/system/flanneld.service.d/capabilities.conf"
	with := func(capabilities, message string) {
		s.Helper()
		h.write(dropIn, "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet="+capabilities+"\n")
		h.must("systemctl daemon-reload; systemctl restart --no-block flanneld")
		h.eventually(said(message))
	}
	h.must("update-alternatives --set iptables /usr/sbin/iptables-legacy")
	with("CAP_NET_ADMIN CAP_NET_RAW", "wrote packet filter rules")
	h.must("iptables-legacy -S FLANNEL-FWD")
	with("CAP_NET_ADMIN", "iptables-save v.*legacy.*Permission denied")
	h.must("iptables-legacy -F; iptables-legacy -X; iptables-legacy -t nat -F; iptables-legacy -t nat -X")
	h.must("update-alternatives --set iptables /usr/sbin/iptables-nft; systemctl stop flanneld; ip link del flannel.1")
	with("CAP_NET_RAW", "operation not permitted")

	h.must("install -o daemon -m 0600 /dev/null /etc/key.pem; cp /etc/default/flanneld /tmp; echo FLANNELD_ETCD_CAFILE=/etc/key.pem >>/etc/default/flanneld")
	with("CAP_NET_ADMIN CAP_NET_RAW", "open /etc/key.pem: permission denied")
	with("CAP_NET_ADMIN CAP_NET_RAW CAP_DAC_READ_SEARCH", "must be a file with PEM certificates")
	h.must("mv /tmp/flanneld /etc/default; rm -r " + filepath.Dir(dropIn) + "; systemctl daemon-reload; systemctl restart flanneld")
	s.ping()
	return "NET_ADMIN, NET_RAW, DAC_READ_SEARCH are needed"
}

// watchdog shortens the watchdog's time limit and checks that an etcd that is away does not trigger
// it, and that a flanneld that hangs does.
func (s *system) watchdog() string {
	s.Helper()
	h := s.hosts[0]
	h.write("/etc/systemd/system/flanneld.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n")
	h.must("systemctl daemon-reload; systemctl restart flanneld")
	pid := h.pid()
	if err := s.lab.Etcd.Pause(); err != nil {
		s.Fatal(err)
	}
	first := h.stamp("flanneld", "WatchdogTimestampMonotonic")
	h.eventually(fmt.Sprintf("[ $(systemctl show -P WatchdogTimestampMonotonic flanneld) -gt %d ]", first+6e6))
	if err := s.lab.Etcd.Resume(); err != nil {
		s.Fatal(err)
	}
	if now := h.pid(); now != pid {
		s.Errorf("PID %d, was %d: flanneld was killed because etcd was away", now, pid)
	}
	h.must(fmt.Sprintf("kill -STOP %d", pid))
	h.replaced(pid)
	h.must("journalctl -u flanneld | grep -q \"result 'watchdog'\"; rm -r /etc/systemd/system/flanneld.service.d; systemctl daemon-reload; systemctl restart flanneld")
	s.ping()
	return "fed without etcd, a stopped process was replaced"
}

// image runs flanneld from the image as the README says, instead of the unit, and goes back to the
// unit.
func (s *system) image() string {
	s.Helper()
	h := s.hosts[0]
	h.must("systemctl stop flanneld")
	h.runImage("")
	h.must("nft list table ip flannel-ipv4")
	s.ping()
	h.must("ip link del flannel.1")
	h.eventually("ip link show flannel.1")
	s.ping()
	h.must("docker rm -f flanneld; systemctl start flanneld")
	h.must("iptables -S FLANNEL-FWD && ! nft list table ip flannel-ipv4 2>/dev/null")
	s.ping()
	return "loaded by docker"
}

// runImage runs the image as the README says, with further options of docker.
func (h *host) runImage(options string) {
	h.system.Helper()
	h.feed(os.Getenv("IMAGE"), "docker load")
	h.must("docker run -d --name flanneld --net=host --cap-add=NET_ADMIN --cap-add=NET_RAW -v /run/flannel:/run/flannel " + options +
		" quay.io/coreos/flannel:older -etcd-endpoints=" + h.system.lab.Etcd.Endpoint() + " -ip-masq")
	h.eventually("docker logs flanneld 2>&1 | grep msg=ready")
}

// otherBackends runs the other backends with the shipped unit, with the other docker drop-in and
// the other packet filter.
func (s *system) otherBackends() {
	s.both(func(h *host) { h.copy("docker-opts/10-flannel.conf", dockerDropIn) })
	for _, c := range []struct{ name, config, filter string }{
		{"host-gw, nftables", `{"Network": "10.42.0.0/16", "EnableNFTables": true, "Backend": {"Type": "host-gw"}}`,
			"nft list table ip flannel-ipv4 && ! iptables -S FLANNEL-FWD 2>/dev/null && for i in 1 2; do " +
				"nft delete table ip flannel-ipv4; timeout 5 sh -c 'until nft list table ip flannel-ipv4; do sleep 0.1; done' || exit; done"},
		{"udp, iptables", network("udp"),
			"iptables -S FLANNEL-FWD && ! nft list table ip flannel-ipv4 2>/dev/null && [ $(systemctl show -P NFileDescriptorStore flanneld) = 2 ]"},
	} {
		s.scenario("hardened unit with "+c.name, func() string {
			s.configure(configKey, c.config)
			s.both(func(h *host) {
				h.must("systemctl restart flanneld")
				h.restartDocker()
				h.find()
				h.must(c.filter)
			})
			s.ping()
			s.published()
			s.toOutside()
			return s.replace(gigabyte/2, func(h *host) { h.must("systemctl restart flanneld") })
		})
	}
	s.scenario("hardened unit with alloc", func() string {
		s.configure(configKey, network("alloc"))
		h := s.hosts[0]
		h.must("systemctl restart flanneld")
		return fmt.Sprint("subnet ", h.subnet())
	})
}

// another writes the config of another network and removes the settings for the first one.
func (s *system) another(prefix, net string) *host {
	s.Helper()
	s.configure(prefix+"/config", `{"Network": "`+net+`", "Backend": {"Type": "vxlan"}}`)
	h := s.hosts[1]
	h.must("systemctl stop docker.socket docker flanneld; rm -f /etc/default/flanneld /run/flannel/*")
	return h
}

// joined checks that flanneld and docker are in a network.
func (h *host) joined(net string) string {
	h.system.Helper()
	h.find()
	subnet := h.subnet()
	if !netip.MustParsePrefix(net).Contains(subnet.Addr()) {
		h.system.Errorf("subnet %s, not in %s", subnet, net)
	}
	return fmt.Sprint("subnet ", subnet)
}

// optionsEnv starts flanneld with the file that coreos-cloudinit writes.
func (s *system) optionsEnv() string {
	s.Helper()
	h := s.another("/coreos.example/network", "10.43.0.0/16")
	h.write("/run/flannel/options.env", fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\nFLANNELD_ETCD_PREFIX=/coreos.example/network\nFLANNELD_IFACE=%s\nFLANNELD_IP_MASQ=true",
		s.lab.Etcd.Endpoint(), h.Addr.Addr()))
	h.must("systemctl reset-failed docker; systemctl start flanneld docker")
	return h.joined("10.43.0.0/16")
}

// sysconfig starts flanneld with the variables of RHEL's package, and docker with the output of
// mk-docker-opts.sh there.
func (s *system) sysconfig() string {
	s.Helper()
	h := s.another("/atomic.io/network", "10.44.0.0/16")
	h.write("/etc/sysconfig/flanneld", fmt.Sprintf("FLANNEL_ETCD_ENDPOINTS=\"%s\"\nFLANNEL_ETCD_PREFIX=\"/atomic.io/network\"\nFLANNEL_OPTIONS=\"-iface=eth0\"\n",
		s.lab.Etcd.Endpoint()))
	h.write("/etc/systemd/system/flanneld.service.d/docker.conf",
		"[Service]\nExecStartPost=/usr/local/bin/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker\n")
	h.write(dockerDropIn, "[Unit]\nAfter=flanneld.service\n[Service]\nEnvironmentFile=-/run/flannel/docker\nExecStart=\n"+
		"ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_NETWORK_OPTIONS\n")
	h.must("systemctl daemon-reload; systemctl reset-failed docker; systemctl start flanneld docker")
	return h.joined("10.44.0.0/16")
}
