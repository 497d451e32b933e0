//go:build system

package dist_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/machine"
	"flanneld/pkg/lab/wait"
)

// soon is the time limit for everything on these hosts, including a reboot.
const soon = time.Minute

// configKey is the key of the network config with the default prefix.
const configKey = "/coreos.com/network/config"

// system is two hosts with docker, an etcd, and another host on the same fabric.
type system struct {
	*testing.T
	name    string
	lab     *lab.Lab
	outside *lab.Host
	hosts   []*host
}

// host is one of the two hosts.
type host struct {
	*machine.Machine
	system *system
	docker container // the container that was started last
}

// container is a container as seen by its host. Commands are run in it without docker, which may be
// stopped.
type container struct {
	host *host
	pid  string
	addr string
}

func newSystem(t *testing.T, name, config string) *system {
	t.Helper()
	suite, err := machine.Suite()
	if err != nil {
		t.Fatal(err)
	}
	return newSystemOn(t, name, config, machine.Kind{Suite: suite}, machine.Kind{Suite: suite})
}

// newSystemOn creates a system with a host of each kind.
func newSystemOn(t *testing.T, name, config string, kinds ...machine.Kind) *system {
	t.Helper()
	if err := machine.Missing(); err != nil {
		t.Fatalf("the system test lacks something:\n%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	begun := time.Now()
	l, err := lab.New(ctx, lab.Options{Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := &system{T: t, name: name, lab: l, outside: l.Hosts[0]}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s.configure(configKey, config)
	for i, kind := range kinds {
		root, err := machine.RootOf(ctx, kind, func(line string) { fmt.Println("system:", line) })
		if err != nil {
			t.Fatal(err)
		}
		h := &host{system: s}
		s.hosts = append(s.hosts, h)
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, 200, byte(11 + i)}), 22)
		h.Machine, err = machine.New(ctx, machine.Options{Name: fmt.Sprintf("m%d", i+1), Addr: addr, Root: root, Lab: l, Holder: s.outside})
		if h.Machine != nil {
			t.Cleanup(func() { s.end(h) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.both(func(h *host) { h.makeImage() })
	var versions []string
	for _, h := range s.hosts {
		versions = append(versions, h.must(`. /etc/os-release; echo "$PRETTY_NAME, systemd $(systemctl --version | sed -n 's/.*(\(.*\)).*/\1/p'), docker $(docker version -f {{.Server.Version}})"`))
	}
	s.say("two hosts with docker", "ok ("+strings.Join(slices.Compact(versions), "; ")+")", begun)
	return s
}

// makeImage creates a container image of busybox and this program, which is linked statically.
func (h *host) makeImage() {
	h.system.Helper()
	h.feed("/proc/self/exe", `
	mkdir -p /tmp/box/bin /tmp/box/tmp /tmp/box/www
	cat >/tmp/box/bin/transfer
	cp /bin/busybox /tmp/box/bin
	for applet in $(busybox --list); do [ $applet = busybox ] || ln -s busybox /tmp/box/bin/$applet; done
	chmod +x /tmp/box/bin/transfer
	tar -C /tmp/box -c . | docker import - box
	rm -r /tmp/box`)
}

// end prints logs after a failure and removes the host.
func (s *system) end(h *host) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if s.Failed() {
		log, _ := h.Run(ctx, "journalctl --no-pager -n 40 -u flanneld; journalctl --no-pager -n 20 -u docker; systemctl --failed --no-legend; ip addr; ip route; iptables-save")
		s.Logf("%s:\n%s", h.Name, log)
	}
	if err := h.Close(ctx); err != nil {
		s.Error(err)
	}
}

// scenario runs a scenario and prints its line.
func (s *system) scenario(what string, run func() string) {
	s.Helper()
	begun, result := time.Now(), "FAILED"
	defer func() { s.say(what, result, begun) }() // also if run ends the test
	note := run()
	if result = "ok"; note != "" {
		result += " (" + note + ")"
	}
}

func (s *system) say(what, result string, begun time.Time) {
	fmt.Printf("system %s: %s: %s, %.1f s\n", s.name, what, result, time.Since(begun).Seconds())
}

// both does something on both hosts in parallel.
func (s *system) both(do func(*host)) {
	s.Helper()
	var group sync.WaitGroup
	for _, h := range s.hosts {
		group.Go(func() { do(h) }) // must ends only this goroutine
	}
	if group.Wait(); s.Failed() {
		s.FailNow()
	}
}

// configure writes a network config.
func (s *system) configure(key, config string) {
	s.Helper()
	if err := s.lab.Etcd.V3().Put(s.Context(), key, config, 0); err != nil {
		s.Fatal(err)
	}
}

// must runs a script that must succeed within the time limit.
func (h *host) must(script string) string {
	h.system.Helper()
	ctx, cancel := context.WithTimeout(h.system.Context(), soon)
	defer cancel()
	out, err := h.Run(ctx, script)
	if err != nil {
		h.system.Fatal(err)
	}
	return out
}

// eventually runs a script until it succeeds, within the time limit.
func (h *host) eventually(script string) string {
	h.system.Helper()
	ctx, cancel := context.WithTimeout(h.system.Context(), soon)
	defer cancel()
	var out string
	err := wait.Until(ctx, func() (err error) {
		out, err = h.Run(ctx, script)
		return err
	})
	if err != nil {
		h.system.Fatal(err)
	}
	return out
}

// write creates a file.
func (h *host) write(path, text string) {
	h.system.Helper()
	ctx, cancel := context.WithTimeout(h.system.Context(), soon)
	defer cancel()
	if _, err := h.Feed(ctx, strings.NewReader(text), fmt.Sprintf("mkdir -p %s && cat >%s", filepath.Dir(path), path)); err != nil {
		h.system.Fatal(err)
	}
}

// copy copies a file of this directory to the host.
func (h *host) copy(name, path string) {
	h.system.Helper()
	h.write(path, read(h.system.T, name))
}

// feed runs a script with a file of this machine as its input.
func (h *host) feed(path, script string) {
	h.system.Helper()
	file, err := os.Open(path)
	if err != nil {
		h.system.Fatal(err)
	}
	defer file.Close()
	if _, err := h.Feed(h.system.Context(), file, script); err != nil {
		h.system.Fatal(err)
	}
}

// unpack unpacks a release. The path of the file is in an environment variable.
func (h *host) unpack(variable string) {
	h.system.Helper()
	h.feed(os.Getenv(variable), "tar -xzf - -C /usr/local/bin flanneld mk-docker-opts.sh")
}

// readme installs a release of flanneld, and docker, as the README says.
func (h *host) readme(variable string) {
	h.system.Helper()
	h.daemon(variable)
	h.copy("docker-bip/10-flannel.conf", dockerDropIn)
	h.restartDocker()
	h.run()
}

// daemon installs a release of flanneld as the README says.
func (h *host) daemon(variable string) {
	h.system.Helper()
	h.unpack(variable)
	h.copy("flanneld.service", "/etc/systemd/system/flanneld.service")
	h.write("/etc/default/flanneld", fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\nFLANNELD_IP_MASQ=true\n", h.system.lab.Etcd.Endpoint()))
	h.must("systemctl daemon-reload; systemctl enable --now flanneld")
}

const dockerDropIn = "/etc/systemd/system/docker.service.d/10-flannel.conf"

// guide installs flanneld and docker as guides for the original say. With their unit, docker is
// stopped whenever flanneld is, so docker's live-restore is on.
func (h *host) guide() {
	h.system.Helper()
	h.write("/etc/systemd/system/flanneld.service", guideUnit)
	h.write("/etc/default/flanneld", fmt.Sprintf("FLANNEL_ETCD=%s\nFLANNEL_ETCD_KEY=/coreos.com/network\nFLANNEL_OPTIONS=\"-v=0 -iface=eth0\"\n",
		h.system.lab.Etcd.Endpoint()))
	h.write("/etc/docker/daemon.json", `{"live-restore": true}`)
	h.write(dockerDropIn, guideDropIn)
	h.must("systemctl daemon-reload; systemctl enable flanneld; systemctl start flanneld")
	h.restartDocker()
	h.run()
}

const guideUnit = `[Unit]
Description=Flanneld overlay address etcd agent
After=network.target network-online.target
Wants=network-online.target
Before=docker.service

[Service]
Type=notify
EnvironmentFile=-/etc/default/flanneld
ExecStart=/usr/local/bin/flanneld -etcd-endpoints=${FLANNEL_ETCD} -etcd-prefix=${FLANNEL_ETCD_KEY} $FLANNEL_OPTIONS
Restart=on-failure

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
`

const guideDropIn = `[Service]
EnvironmentFile=-/run/flannel/subnet.env
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --bip=${FLANNEL_SUBNET} --mtu=${FLANNEL_MTU}
`

// restartDocker restarts dockerd, also if its unit has reached the limit of starts.
func (h *host) restartDocker() {
	h.system.Helper()
	h.must("systemctl daemon-reload; systemctl reset-failed docker; systemctl restart docker")
}

// run starts a container that docker restarts, with a published port. It ends on SIGTERM, so that a
// reboot is fast.
func (h *host) run() {
	h.system.Helper()
	h.must("docker run -d --name box --restart=always -p 8080:80 box " +
		"sh -c 'trap exit TERM; echo " + h.Name + " >/www/name; httpd -p 80 -h /www; sleep 1000000 & wait' 2>&1")
	h.find()
}

// find looks up the container's PID and address, which change when docker restarts.
func (h *host) find() {
	h.system.Helper()
	out := h.eventually(`
	set -- $(docker inspect -f '{{.State.Running}} {{.State.Pid}} {{.NetworkSettings.IPAddress}}' box)
	[ "$1" = true ] && [ $# = 3 ] && nsenter -a -t $2 test -s /www/name && echo $2 $3`)
	pid, addr, _ := strings.Cut(out, " ")
	h.docker = container{h, pid, addr}
	if subnet := h.subnet(); !subnet.Contains(netip.MustParseAddr(addr)) {
		h.system.Fatalf("container of %s has %s, not in %s", h.Name, addr, subnet)
	}
}

// exec runs a script in a container.
func (c container) exec(ctx context.Context, script string) (string, error) {
	quoted := "'" + strings.ReplaceAll(script, "'", `'\''`) + "'"
	return c.host.Run(ctx, "nsenter --all --target "+c.pid+" env -i PATH=/bin sh -euc "+quoted)
}

// subnet returns the subnet in the subnet file.
func (h *host) subnet() netip.Prefix {
	h.system.Helper()
	subnet, err := netip.ParsePrefix(h.must(". /run/flannel/subnet.env; echo $FLANNEL_SUBNET"))
	if err != nil {
		h.system.Fatal(err)
	}
	return subnet.Masked()
}

// pid returns the PID of flanneld after READY.
func (h *host) pid() int {
	h.system.Helper()
	out := h.eventually("systemctl is-active -q flanneld && systemctl show -P MainPID flanneld")
	pid, err := strconv.Atoi(out)
	if err != nil {
		h.system.Fatal(err)
	}
	return pid
}

// replaced waits until systemd reports another flanneld as READY.
func (h *host) replaced(before int) {
	h.system.Helper()
	h.eventually(fmt.Sprintf("systemctl is-active -q flanneld && [ $(systemctl show -P MainPID flanneld) != %d ]", before))
}

// version returns the version of the running flanneld, which must be the same on both hosts.
func (s *system) version() string {
	s.Helper()
	var versions []string
	for _, h := range s.hosts {
		versions = append(versions, h.must(fmt.Sprintf("/proc/%d/exe -version 2>&1", h.pid())))
	}
	if versions[0] != versions[1] {
		s.Errorf("versions %q", versions)
	}
	return versions[0]
}
