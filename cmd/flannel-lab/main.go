// Command flannel-lab demonstrates and measures flanneld on one machine. It creates hosts as
// network namespaces with a real etcd and starts real flanneld processes. The demo pings between
// containers of all hosts and shows what was programmed. The benchmarks print tables. It needs root
// and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"flanneld/pkg/lab"
)

func main() {
	os.Exit(lab.Main(func() int { return run(os.Args[1:], os.Stdout, os.Stderr) }))
}

const usage = `Usage: flannel-lab [demo] [flags]
       flannel-lab bench [flags]

Run flanneld on hosts that are network namespaces of this machine, with a real etcd.
Everything is removed at the end. Needs root.

demo    ping between containers of all hosts, measure throughput, show what flanneld
        has programmed
bench   measure the daemon, convergence and repairs, throughput beside the bare link,
        and one host with 20,000 peers; print tables
`

// settings are the values of the command line.
type settings struct {
	bench    bool
	flanneld string

	// Settings of the demo.
	hosts   int
	backend string
	keep    bool
	slice   time.Duration // time for each path of a TCP measurement in a turn

	// Settings of the benchmarks.
	quick bool
	only  string // name of the only section to measure; empty: all
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
		fmt.Fprintln(stderr, "flannel-lab: must be run as root, because it creates network namespaces: use sudo")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.bench {
		err = runBench(ctx, s.flanneld, s.only, planOf(s.quick), stdout, stderr)
	} else {
		err = demo(ctx, s, newReport(stdout))
	}
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
	s := settings{bench: len(args) > 0 && args[0] == "bench", slice: 150 * time.Millisecond}
	if s.bench || len(args) > 0 && args[0] == "demo" {
		args = args[1:]
	}
	both, ofDemo, ofBench := flagSet("flannel-lab"), flagSet("demo"), flagSet("bench")
	both.StringVar(&s.flanneld, "flanneld", "dist/flanneld", "`path` of the flanneld binary")
	ofDemo.IntVar(&s.hosts, "hosts", 3, "`number` of hosts, 1 to 50")
	ofDemo.StringVar(&s.backend, "backend", "vxlan", "backend `type`: vxlan, host-gw, udp or alloc")
	ofDemo.BoolVar(&s.keep, "keep", false, "keep the hosts until Ctrl-C")
	ofBench.BoolVar(&s.quick, "quick", false, "measure for a shorter time, with less exact figures")
	ofBench.StringVar(&s.only, "only", "", "measure one `section`: "+strings.Join(sectionNames, ", "))
	own := ofDemo
	if s.bench {
		own = ofBench
	}
	text := fmt.Sprintf("%s\nFlags:\n%s\nFlags of demo:\n%s\nFlags of bench:\n%s", usage,
		both.FlagUsages(), ofDemo.FlagUsages(), ofBench.FlagUsages())
	own.Usage = func() { fmt.Fprint(help, text) }
	own.AddFlagSet(both)
	if err := own.Parse(args); err != nil {
		return s, err
	}
	if rest := own.Args(); len(rest) > 0 {
		return s, fmt.Errorf("unexpected argument %q: must be a flag", rest[0])
	}
	return s, s.check()
}

func flagSet(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SetOutput(io.Discard) // run reports the error
	f.SortFlags = false
	return f
}

// backends are the types of backends that the demo can run.
var backends = []string{"vxlan", "host-gw", "udp", "alloc"}

func (s settings) check() error {
	if s.hosts < 1 || s.hosts > 50 {
		return fmt.Errorf("--hosts: %d: must be 1 to 50", s.hosts)
	}
	if s.backend != "" && !slices.Contains(backends, s.backend) {
		return fmt.Errorf("--backend: %q: must be one of %s", s.backend, strings.Join(backends, ", "))
	}
	if s.only != "" && !slices.Contains(sectionNames, s.only) {
		return fmt.Errorf("--only: %q: must be one of %s", s.only, strings.Join(sectionNames, ", "))
	}
	info, err := os.Stat(s.flanneld)
	if err != nil {
		return fmt.Errorf("--flanneld: %w", err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("--flanneld: %q: must be a program", s.flanneld)
	}
	return nil
}
