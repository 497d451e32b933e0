package main

import (
	"fmt"
	"strings"
	"time"

	"flanneld/pkg/cleanup"

	"github.com/spf13/pflag"
)

// group is a group of related flags in the help.
type group struct {
	title string
	flags func(*commandLine, *pflag.FlagSet)
}

// noEffect annotates flags that are accepted only for compatibility. Its value says why the flag is
// refused if it differs from its default, or is empty if it can be ignored.
const noEffect = "flanneld-no-effect"

var groups = []group{
	{"etcd", func(cl *commandLine, f *pflag.FlagSet) {
		e := &cl.options.Etcd
		f.StringVar(&cl.endpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "comma separated `URLs` of etcd")
		f.StringVar(&cl.options.EtcdDomain, "etcd-discovery-srv", "", "`domain` whose SRV records list the endpoints of etcd; replaces --etcd-endpoints")
		f.StringVar((*string)(&cl.options.EtcdAPI), "etcd-api", "auto", "`API` of etcd: v2, v3, or auto for the one whose store holds the network")
		f.StringVar(&e.Prefix, "etcd-prefix", "/coreos.com/network", "`key` prefix of the network config and the leases")
		f.StringVar(&e.KeyFile, "etcd-keyfile", "", "PEM `file` with the key of the client certificate")
		f.StringVar(&e.CertFile, "etcd-certfile", "", "PEM `file` with the client certificate")
		f.StringVar(&e.CAFile, "etcd-cafile", "", "PEM `file` with the CA of etcd's certificate; enough by itself for TLS")
		f.StringVar(&e.Username, "etcd-username", "", "`name` of the etcd user")
		f.StringVar(&e.Password, "etcd-password", "", "`password` of the etcd user; FLANNELD_ETCD_PASSWORD keeps it out of the process list")
	}},
	{"uplink, the interface to the other hosts (default: the interface of the default route)", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringArrayVar(&cl.options.Uplink.Ifaces, "iface", nil, "`name` or IPv4 address of the interface; may be repeated: the first usable one is taken")
		f.StringArrayVar(&cl.options.Uplink.Regexes, "iface-regex", nil, "regular `expression` for its address or name; tried after --iface; may be repeated")
		f.StringVar(&cl.canReach, "iface-can-reach", "", "`IPv4` address: take the interface of the route to it; tried last")
		f.StringVar(&cl.publicIP, "public-ip", "", "`IPv4` address that other hosts send to, if it is not the interface's own (NAT)")
		noEffectFlag(f, "public-ipv6", "", "`address` (no effect: the overlay carries IPv4 only)", "")
	}},
	{"lease and files", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringVar(&cl.options.SubnetFile, "subnet-file", defaultSubnetFile, "`file` to write the subnet and the MTU to, for docker")
		f.IntVar(&cl.margin, "subnet-lease-renew-margin", 60, "`minutes` before the end of the lease at which it is renewed, 1 to 1439")
		f.BoolVar(&cl.options.Release, "release-lease-on-exit", false, "give up the lease on SIGTERM; for hosts that do not come back")
	}},
	{"packet filter (iptables; nftables if iptables is not installed or EnableNFTables is true)", func(cl *commandLine, f *pflag.FlagSet) {
		r := &cl.options.Rules
		f.BoolVar(&r.Masquerade, "ip-masq", false, "masquerade packets from containers to the outside; sets FLANNEL_IPMASQ for docker")
		f.BoolVar(&r.KeepPorts, "ip-masq-fully-random-disable", false, "do not choose source ports at random when masquerading")
		f.BoolVar(&r.Forward, "iptables-forward-rules", true, "accept forwarded packets of the network, except to the tunnel's port")
		f.IntVar(&cl.resync, "iptables-resync", 5, "`seconds` between checks of the iptables rules, 1 to 3600; not needed with nftables")
		f.BoolVar(&r.Lock, "underlay-lock", false, "drop packets to the tunnel's port from hosts without a lease; needs nftables")
		f.BoolVar(&cl.options.Blackhole, "ip-blackhole-route", false, "drop packets to this host's subnet while no bridge has the subnet")
	}},
	{"health and status", func(cl *commandLine, f *pflag.FlagSet) {
		f.StringVar(&cl.healthzIP, "healthz-ip", "0.0.0.0", "`address` to serve /healthz and /readyz on")
		f.IntVar(&cl.healthzPort, "healthz-port", 0, "`port` to serve them on, 0 to 65535; 0 turns them off")
		f.StringVar(&cl.statusListen, "status-listen", "", "`address:port` to serve /status, /readyz, /metrics and a page on, for monitoring; off if empty")
		f.DurationVar(&cl.options.Probes, "probe-interval", time.Second, "`time` in which up to 5 peers are pinged through the overlay, 100ms to 1h; 0 turns it off")
		f.BoolVar(&cl.options.PerPeer, "metrics-per-peer", false, "also export metrics of each peer, of which there may be thousands")
	}},
	{"logging (to standard error)", func(cl *commandLine, f *pflag.FlagSet) {
		f.IntVar(&cl.verbosity, "v", 0, "log `level`: 0 for changes of state, 1 for every operation as a command")
		noEffectFlag(f, "vmodule", "", "`pattern=level` list (no effect)", "")
		noEffectFlag(f, "log_backtrace_at", ":0", "`file:line` (no effect)", "")
	}},
	{"other", func(cl *commandLine, f *pflag.FlagSet) {
		f.BoolVar(&cl.dryRun, "dry-run", false, "print what a start would change, as commands, and exit")
		f.BoolVar(&cl.showVersion, "version", false, "print the version and exit")
		f.Bool("help", false, "print this help and exit")
	}},
}

const (
	noKubernetes = "this flanneld keeps its leases in etcd; there is no Kubernetes mode"
	noServer     = "there is no client and server mode: every host talks to etcd, with -etcd-endpoints"
	noNetworks   = "one daemon serves one network: start one for each, with its own -etcd-prefix and -subnet-file"
)

// defineWithoutEffect defines the flags of other modes and of older releases, which the help omits.
func defineWithoutEffect(f *pflag.FlagSet) {
	noEffectFlag(f, "kube-subnet-mgr", false, "", noKubernetes)
	noEffectFlag(f, "kube-api-url", "", "", "")
	noEffectFlag(f, "kubeconfig-file", "", "", "")
	noEffectFlag(f, "kube-annotation-prefix", "flannel.alpha.coreos.com", "", "")
	noEffectFlag(f, "net-config-path", "/etc/kube-flannel/net-conf.json", "", "")
	noEffectFlag(f, "set-node-network-unavailable", true, "", "")
	noEffectFlag(f, "use-multi-cluster-cidr", false, "", "")
	for _, name := range []string{"listen", "remote"} {
		noEffectFlag(f, name, "", "", noServer)
	}
	for _, name := range []string{"remote-keyfile", "remote-certfile", "remote-cafile", "log_dir"} {
		noEffectFlag(f, name, "", "", "")
	}
	noEffectFlag(f, "networks", "", "", noNetworks)
	noEffectFlag(f, "watch-networks", false, "", noNetworks)
	noEffectFlag(f, "subnet-dir", "/run/flannel/networks", "", "")
	noEffectFlag(f, "logtostderr", true, "", "")
	noEffectFlag(f, "alsologtostderr", false, "", "")
	noEffectFlag(f, "stderrthreshold", "", "", "")
}

// noEffectFlag defines a flag without effect.
func noEffectFlag(f *pflag.FlagSet, name string, def any, usage, refusal string) {
	switch def := def.(type) {
	case string:
		f.String(name, def, usage)
	case bool:
		f.Bool(name, def, usage)
	}
	f.Lookup(name).Annotations = map[string][]string{noEffect: {refusal}}
}

const defaultSubnetFile = cleanup.DefaultSubnetFile

// help returns the help text of the daemon.
func help() string {
	var b strings.Builder
	b.WriteString(`flanneld leases this host a subnet of an overlay network, and connects its containers to those of
the other hosts.

Usage: flanneld [--flag=value]...            run the daemon
       flanneld COMMAND [--flag=value]...

Commands (flanneld COMMAND --help shows more):
`)
	for _, c := range subcommands {
		fmt.Fprintf(&b, "  %-12s%s\n", c.name, c.short)
	}
	b.WriteString(`
Flags take one dash or two. A boolean flag takes its value after "=": --ip-masq=true.
Each flag can also be set by an environment variable, such as FLANNELD_ETCD_PREFIX for
--etcd-prefix. The command line takes precedence.

Exit code: 0 after SIGTERM or SIGINT, 1 for a failure, 2 for a bad command line.
`)
	for _, g := range groups {
		scratch := newFlags(g.title)
		g.flags(&commandLine{}, scratch)
		fmt.Fprintf(&b, "\n%s:\n%s", g.title, scratch.FlagUsagesWrapped(100))
	}
	b.WriteString("\nFlags of flannel's client/server, multi-network and Kubernetes modes are refused, or have no effect.\n")
	return b.String()
}
