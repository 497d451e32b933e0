package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/daemon"
	"flanneld/pkg/plan"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of "flanneld plan". They are those of other programs with such a flag, so that of a bad
// command line is 1, too.
const (
	planUnknown = 1
	planSome    = 2 // with --exit-code: there is something to do
)

// aliveTimeout is the time in which a daemon that works answers.
const aliveTimeout = 3 * time.Second

// planOptions are the flags of "flanneld plan".
type planOptions struct {
	overrides
	json, exitCode bool
}

// newPlan returns the command "flanneld plan".
func newPlan(in *invocation) *cobra.Command {
	c := &cobra.Command{Use: "plan [--flag=value]...", Args: onlyFlags, Long: planHelp}
	o := &planOptions{}
	f := c.Flags()
	f.BoolVar(&o.exitCode, "exit-code", false, "exit with 2 if there is something to do")
	f.BoolVar(&o.json, "json", false, "print the plan as JSON; README.md describes its fields")
	o.overrides = newOverrides(f, groups[:4]...) // etcd, uplink, lease and files, packet filter
	c.RunE = func(*cobra.Command, []string) error { return o.run(in) }
	return c
}

const planHelp = `flanneld plan prints what flanneld would change on this host now, as commands of ip, bridge, sysctl,
iptables and nft that can be pasted into a shell. It changes nothing. On a healthy host it prints
nothing. Lines that begin with # say what is left as it is, and what could not be found out.

It asks the flanneld of this host. If none runs, or if it does not answer, the plan is that of a
start: with the settings of the flanneld that does not answer, else of its unit. The flags below
override them; with any of them, the plan is that of a start, too. Run it as root.

  flanneld plan              # what would be repaired
  flanneld plan | sh -ex     # repair it now
  flanneld plan --exit-code  # for scripts

Exit code: 0, 1 for an error or a bad command line. With --exit-code, 0 if there is nothing to do, 2
if there is something, 1 also if it cannot tell.`

// run prints the plan.
func (o *planOptions) run(in *invocation) error {
	doc, err := o.plan(in)
	if errors.As(err, &usageError{}) {
		return err
	}
	if err == nil {
		err = printPlan(in.stdout, doc, o.json)
	}
	if err != nil {
		complain(in.stderr, "flanneld plan", err)
		return exitCode(planUnknown)
	}
	switch {
	case !o.exitCode:
	case len(doc.Operations) > 0:
		return exitCode(planSome)
	case len(doc.Unknown) > 0:
		return exitCode(planUnknown)
	}
	return nil
}

func printPlan(out io.Writer, doc plan.Document, asJSON bool) error {
	if asJSON {
		return printJSON(out, doc)
	}
	return printText(out, doc.Text())
}

// plan returns the daemon's plan, or that of a start.
func (o *planOptions) plan(in *invocation) (plan.Document, error) {
	cl, source, err := o.settings(in.ctx, in.env)
	if err != nil {
		return plan.Document{}, usageError{err}
	}
	note := ""
	if !o.overridden() {
		doc, err := askPlan(in.ctx, api.Dial(cl.options.SubnetFile))
		switch {
		case errors.Is(err, api.ErrNoAnswer):
			note = "flanneld does not answer; this is what a start would change"
		case errors.Is(err, fs.ErrPermission):
			return doc, fmt.Errorf("%w; must be run as root", err)
		case !errors.Is(err, api.ErrNotRunning):
			return doc, err
		}
	}
	doc, err := dryRun(in.ctx, cl.options, in.stderr)
	if err != nil {
		return doc, fmt.Errorf("%w; %s", err, source)
	}
	if note != "" {
		doc.Note(note)
	}
	return doc, nil
}

// overridden reports whether a flag was given that makes the plan that of a start.
func (o *planOptions) overridden() bool {
	is := false
	o.flags.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "subnet-file", "json", "exit-code":
		default:
			is = true
		}
	})
	return is
}

// askPlan asks a daemon for its plan. One that hangs is not waited for as long as one that works.
func askPlan(ctx context.Context, client *api.Client) (plan.Document, error) {
	alive, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	if _, err := client.Get(alive, "/healthz"); err != nil {
		return plan.Document{}, err
	}
	return client.Plan(ctx)
}

// printDryRun prints the plan of a start with a command line, and returns the exit code.
func printDryRun(ctx context.Context, cl *commandLine, stdout, stderr io.Writer) int {
	for _, w := range cl.warnings {
		warnings(stderr).Warn(w.text, w.fields...)
	}
	doc, err := dryRun(ctx, cl.options, stderr)
	if err == nil {
		err = printPlan(stdout, doc, false)
	}
	if err != nil {
		complain(stderr, "flanneld", err)
		return 1
	}
	return 0
}

// dryRun returns the plan of a start. Warnings are on standard error.
func dryRun(ctx context.Context, o daemon.Options, stderr io.Writer) (plan.Document, error) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "flanneld: not run as root: much cannot be read")
	}
	return daemon.DryRun(ctx, o, warnings(stderr))
}
