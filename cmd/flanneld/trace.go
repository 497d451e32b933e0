package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"flanneld/pkg/doctor"
	"flanneld/pkg/trace"
)

// Exit codes of "flanneld trace".
const (
	traceOK      = 0
	traceBroken  = 1
	traceUsage   = 2
	traceUnknown = 3 // nothing is known to be wrong, but not everything could be found out
	traceFailed  = 4 // it was interrupted, or could not write its result
)

// traceOptions are the flags of "flanneld trace".
type traceOptions struct {
	doctor.TraceOptions
	overrides
	json   bool
	port   int
	status string
}

// newTrace returns the command "flanneld trace".
func newTrace(in *invocation) *cobra.Command {
	o := &traceOptions{}
	c := &cobra.Command{Use: "trace [--flag=value]... SRC DST", Long: traceHelp, Args: cobra.ArbitraryArgs, ValidArgsFunction: cobra.NoFileCompletions}
	f := c.Flags()
	f.IntVar(&o.port, "port", 0, "`port` that SRC sends to, 1 to 65535; without it, usual ports are tried")
	f.StringVar(&o.Protocol, "proto", "", "`protocol` of the packets: tcp, udp or icmp; all three if empty, tcp and udp with --port")
	f.StringVar(&o.status, "peer-status", "", "`address:port` where the other host serves its status; default: its public IP, and the port of this host's --status-listen")
	f.BoolVar(&o.json, "json", false, "print the trace as JSON")
	o.overrides = newOverrides(f, groups[:2]...) // etcd, uplink
	c.RunE = func(_ *cobra.Command, args []string) error {
		if err := o.parse(args); err != nil {
			return err
		}
		if code := o.run(in.ctx, in); code != traceOK {
			return exitCode(code)
		}
		return nil
	}
	return c
}

const traceHelp = `flanneld trace follows a packet from the container with the address SRC to the one with DST, and the
reply to it, as far as this host is on the way: bridge, packet filter, route, neighbour entry, FDB
entry, uplink, and the peer. It prints what it found at each step with the command that shows it, ✓,
✗ or ? (not known), and the first thing that is wrong with what mends it. Run it as root, on the host
of one of the two containers.

It changes nothing, works while flanneld is down, and ends within 10 seconds. It sends pings to the
two containers and to the other host. That host's half comes from its flanneld, if this can be asked
for its status; else from its lease, and from what answers the pings.

The settings of the daemon are those of the one that runs, else those of its systemd unit. The flags
below override them.

Exit code: 0 if every step is fine, 1 if something is wrong, 2 for a bad command line, 3 if nothing is
known to be wrong and something is not known, 4 if it failed.`

// parse checks the arguments and the flags.
func (o *traceOptions) parse(args []string) (err error) {
	if len(args) > 2 {
		return fmt.Errorf("unexpected argument %q: must be SRC DST", args[2])
	}
	for i, to := range []*netip.Addr{&o.Src, &o.Dst} {
		name := []string{"SRC", "DST"}[i]
		if i >= len(args) {
			return fmt.Errorf("%s: must be the IPv4 address of a container", name)
		}
		if *to, err = netip.ParseAddr(args[i]); err != nil || !to.Is4() || !to.IsGlobalUnicast() {
			return fmt.Errorf("%s: %q: must be the IPv4 address of a container", name, args[i])
		}
	}
	if o.Src == o.Dst {
		return fmt.Errorf("DST: %q: must be another address than SRC", args[1])
	}
	if !slices.Contains([]string{"", "tcp", "udp", "icmp"}, o.Protocol) {
		return bad("proto", o.Protocol, "tcp, udp or icmp")
	}
	if o.flags.Changed("port") && (o.port < 1 || o.port > 65535) {
		return bad("port", fmt.Sprint(o.port), "1 to 65535")
	}
	if o.port != 0 && o.Protocol == "icmp" {
		return bad("port", fmt.Sprint(o.port), "left out with --proto=icmp")
	}
	o.Port = uint16(o.port)
	if o.status != "" {
		if o.Peer, err = listenAddr("peer-status", o.status); err != nil {
			return err
		}
	}
	return nil
}

// run traces, and prints the result.
func (o *traceOptions) run(ctx context.Context, in *invocation) int {
	settings, err := o.doctorSettings(ctx, in.env)
	if err != nil {
		fmt.Fprintf(in.stderr, "flanneld trace: %v\n", err)
		return traceUsage
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(in.stderr, "flanneld trace: not run as root: much cannot be found out")
	}
	run, cancel := context.WithTimeout(ctx, doctor.Limit)
	defer cancel()
	doctor.DiscardLog()
	t := doctor.Trace(run, doctor.NewInputs(run, settings), o.TraceOptions)
	if ctx.Err() != nil {
		fmt.Fprintln(in.stderr, "flanneld trace: interrupted")
		return traceFailed
	}
	if o.json {
		err = t.JSON(in.stdout)
	} else {
		err = trace.Style{Color: isTerminal(in.stdout) && os.Getenv("NO_COLOR") == ""}.Text(in.stdout, t)
	}
	if err != nil {
		complain(in.stderr, "flanneld trace", written(err))
		return traceFailed
	}
	return map[trace.Verdict]int{trace.OK: traceOK, trace.Broken: traceBroken, trace.Unknown: traceUnknown}[t.Verdict]
}
