// Command flannel-lab shows flanneld at work on one machine: it makes hosts as network namespaces with a real etcd,
// starts real flanneld processes, pings between containers of all hosts and measures throughput. It needs root and
// leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"flanneld/pkg/lab"
)

func main() {
	os.Exit(lab.Main(func() int { return run(os.Args[1:], os.Stdout, os.Stderr) }))
}

const usage = `Usage: flannel-lab [demo] [flags]

Makes hosts as network namespaces on this machine, with a real etcd and real
flanneld processes; pings between containers of all hosts, measures throughput,
shows what flanneld programmed, and removes everything again. Needs root.

Flags:
`

// settings is what the command line says.
type settings struct {
	hosts    int
	backend  string
	keep     bool
	flanneld string
}

func run(args []string, stdout, stderr io.Writer) int {
	s, err := parse(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flannel-lab: %v\nRun 'flannel-lab --help' for usage.\n", err)
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "flannel-lab: this needs root, because it makes network namespaces; run it with sudo")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = demo(ctx, s, newReport(stdout))
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintf(stderr, "flannel-lab: stopped by a signal: %v\n", err)
		return 130
	default:
		fmt.Fprintf(stderr, "flannel-lab: %v\n", err)
		return 1
	}
}

func parse(args []string, help io.Writer) (settings, error) {
	var s settings
	flags := pflag.NewFlagSet("flannel-lab", pflag.ContinueOnError)
	flags.SetOutput(io.Discard) // run reports the error
	flags.SortFlags = false
	flags.IntVar(&s.hosts, "hosts", 3, "number of hosts, 1 to 50")
	flags.StringVar(&s.backend, "backend", "vxlan", "backend type: vxlan, host-gw, udp, ipip, …")
	flags.StringVar(&s.flanneld, "flanneld", "dist/flanneld", "flanneld binary to run")
	flags.BoolVar(&s.keep, "keep", false, "wait for Ctrl-C before removing everything")
	flags.Usage = func() { fmt.Fprint(help, usage, flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	rest := flags.Args()
	if len(rest) > 0 && rest[0] == "demo" {
		rest = rest[1:]
	}
	if len(rest) > 0 {
		return s, fmt.Errorf("unexpected argument %q", rest[0])
	}
	if s.hosts < 1 || s.hosts > 50 {
		return s, fmt.Errorf("--hosts is %d, not 1 to 50", s.hosts)
	}
	info, err := os.Stat(s.flanneld)
	if err != nil {
		return s, fmt.Errorf("--flanneld: %w", err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return s, fmt.Errorf("--flanneld: %s is not a program", s.flanneld)
	}
	return s, nil
}
