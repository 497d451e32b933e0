package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// group is a paragraph of the help: flags that belong together.
type group struct {
	title string
	flags func(*commandLine, *pflag.FlagSet)
}

// noEffect annotates flags that are accepted only so that existing command
// lines work. Its value says why the flag is refused when it asks for more than
// its default, or is empty where it can be ignored.
const noEffect = "flanneld-no-effect"

var groups = []group{
	{"etcd", func(cl *commandLine, f *pflag.FlagSet) {
		e := &cl.options.Etcd
		f.StringVar(&cl.endpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "comma separated `URLs` of etcd's members")
		f.StringVar(&cl.options.EtcdDomain, "etcd-discovery-srv", "", "`domain` whose SRV records name etcd's members, instead of -etcd-endpoints")
		f.StringVar((*string)(&cl.options.EtcdAPI), "etcd-api", "auto", "`API` that the network is kept in: v2, v3, or auto for the one that holds config and leases")
		f.StringVar(&e.Prefix, "etcd-prefix", "/coreos.com/network", "`key` below which config and leases are kept")
		f.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` with the key of the client certificate (PEM)")
		f.StringVar(&e.CertFile, "etcd-certfile", "", "`file` with the client certificate (PEM)")
		f.StringVar(&e.CAFile, "etcd-cafile", "", "`file` with the CA that signs etcd's certificates (PEM); enough by itself")
		f.StringVar(&e.Username, "etcd-username", "", "`name` of etcd's user, in either API")
		f.StringVar(&e.Password, "etcd-password", "", "his `password`; FLANNELD_ETCD_PASSWORD hides it from the process list")
	}},
	{"uplink: the interface that carries the overlay (default: that of the default route)", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringArrayVar(&cl.ifaces, "iface", nil, "`name` or IPv4 address of an interface; may be repeated, the first that fits wins")
		f.StringArrayVar(&cl.regexes, "iface-regex", nil, "`expression` for addresses, then names; tried after -iface; may be repeated")
		f.StringVar(&cl.canReach, "iface-can-reach", "", "the interface of the route to this `IPv4`; tried last")
		f.StringVar(&cl.publicIP, "public-ip", "", "`IPv4` address that peers send to, when it is not the uplink's own (NAT)")
		idle(f, "public-ipv6", "", "`address` (no effect: the overlay carries IPv4 only)", "")
	}},
	{"lease and files", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringVar(&cl.options.SubnetFile, "subnet-file", subnetFile, "`file` that tells docker the subnet and MTU")
		f.IntVar(&cl.margin, "subnet-lease-renew-margin", 60, "`minutes` before its end at which the lease is renewed, 1 to 1439")
		f.BoolVar(&cl.options.Release, "release-lease-on-exit", false, "give up the lease at SIGTERM, for hosts that do not come back")
	}},
	{"packet filter (iptables, or nftables where there is no iptables or the network config asks for it)", func(cl *commandLine, f *pflag.FlagSet) {
		r := &cl.options.Rules
		f.BoolVar(&r.Masquerade, "ip-masq", false, "give what leaves the overlay this host's address; sets FLANNEL_IPMASQ for docker")
		f.BoolVar(&r.KeepPorts, "ip-masq-fully-random-disable", false, "do not choose its source ports at random")
		f.BoolVar(&r.Forward, "iptables-forward-rules", true, "let the overlay's traffic through, whatever docker's rules say, but not to the ports of tunnels")
		f.IntVar(&cl.resync, "iptables-resync", 5, "`seconds` between checks of iptables' rules, 1 to 3600; nftables tells of changes")
		f.BoolVar(&r.Lock, "underlay-lock", false, "drop what comes to the tunnel's port from hosts without a lease; needs nftables in the kernel")
		f.BoolVar(&cl.options.Blackhole, "ip-blackhole-route", false, "drop what is for this host's subnet while no bridge takes it")
	}},
	{"health", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringVar(&cl.options.HealthzIP, "healthz-ip", "0.0.0.0", "`address` on which /healthz and /readyz answer")
		f.IntVar(&cl.options.HealthzPort, "healthz-port", 0, "`port` on which they answer; 0: off")
	}},
	{"logging (to standard error)", func(cl *commandLine, f *pflag.FlagSet) {
		f.IntVar(&cl.verbosity, "v", 0, "verbosity `level`: 1 and above print every change as a command")
		idle(f, "vmodule", "", "`pattern=level` list (no effect)", "")
		idle(f, "log_backtrace_at", ":0", "`file:line` (no effect)", "")
	}},
	{"other", func(cl *commandLine, f *pflag.FlagSet) {
		f.BoolVar(&cl.showVersion, "version", false, "print the version and exit")
		f.Bool("help", false, "print this text and exit")
	}},
	{"", kubernetesFlags},
	{"", formerFlags},
}

// subnetFile is where docker's units look.
const subnetFile = "/run/flannel/subnet.env"

const (
	noKubernetes = "this flanneld keeps its leases in etcd; there is no Kubernetes mode"
	noServer     = "there is no client and server mode: every host talks to etcd, with -etcd-endpoints"
	noNetworks   = "one daemon serves one network: start one for each, with its own -etcd-prefix and -subnet-file"
)

func kubernetesFlags(_ *commandLine, f *pflag.FlagSet) {
	idle(f, "kube-subnet-mgr", false, "", noKubernetes)
	idle(f, "kube-api-url", "", "", "")
	idle(f, "kubeconfig-file", "", "", "")
	idle(f, "kube-annotation-prefix", "flannel.alpha.coreos.com", "", "")
	idle(f, "net-config-path", "/etc/kube-flannel/net-conf.json", "", "")
	idle(f, "set-node-network-unavailable", true, "", "")
	idle(f, "use-multi-cluster-cidr", false, "", "")
}

func formerFlags(_ *commandLine, f *pflag.FlagSet) {
	for _, name := range []string{"listen", "remote"} {
		idle(f, name, "", "", noServer)
	}
	for _, name := range []string{"remote-keyfile", "remote-certfile", "remote-cafile", "log_dir"} {
		idle(f, name, "", "", "")
	}
	idle(f, "networks", "", "", noNetworks)
	idle(f, "watch-networks", false, "", noNetworks)
	idle(f, "subnet-dir", "/run/flannel/networks", "", "")
	idle(f, "logtostderr", true, "", "")
	idle(f, "alsologtostderr", false, "", "")
	idle(f, "stderrthreshold", "", "", "")
}

// idle defines a flag without effect; its value is never read.
func idle(f *pflag.FlagSet, name string, def any, usage, refusal string) {
	switch def := def.(type) {
	case string:
		f.String(name, def, usage)
	case bool:
		f.Bool(name, def, usage)
	case int:
		f.Int(name, def, usage)
	}
	f.Lookup(name).Annotations = map[string][]string{noEffect: {refusal}}
}

func (g group) define(cl *commandLine) { g.flags(cl, cl.flags) }

// help prints the groups that have a title.
func (cl *commandLine) help() string {
	var b strings.Builder
	b.WriteString(`flanneld gives this host a subnet of an overlay network and connects it with its peers.

Usage: flanneld [-flag=value]...
       flanneld cleanup [-flag=value]...    removes what it has made, see flanneld cleanup --help

Flags take one dash or two. Each can be set by an environment variable too: -etcd-prefix
by FLANNELD_ETCD_PREFIX; the command line wins. Booleans take "=": -ip-masq=true.
`)
	for _, g := range groups {
		if g.title == "" {
			continue
		}
		scratch := pflag.NewFlagSet(g.title, pflag.ContinueOnError)
		scratch.SortFlags = false
		g.flags(&commandLine{}, scratch)
		fmt.Fprintf(&b, "\n%s:\n%s", g.title, scratch.FlagUsagesWrapped(100))
	}
	b.WriteString("\nFlags of the original's client/server, multi-network and Kubernetes modes are recognised and refused or ignored.\n")
	return b.String()
}
