package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"flanneld/pkg/doctor"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Exit codes of "flanneld doctor".
const (
	doctorFine    = 0 // no check has failed
	doctorProblem = 1
	doctorUsage   = 2
	doctorFailed  = 3 // it could not run or write what was asked for
)

// doctorOptions are the flags of "flanneld doctor".
type doctorOptions struct {
	json   bool
	bundle string
	overrides
}

// doctorFlags defines the flags of "flanneld doctor": those of the daemon for etcd and the uplink
// have the daemon's names.
func doctorFlags(f *pflag.FlagSet) *doctorOptions {
	o := &doctorOptions{}
	f.BoolVar(&o.json, "json", false, "print the report as JSON")
	f.StringVar(&o.bundle, "bundle", "", "write a tar.gz `file` for a bug report; without passwords and keys")
	o.overrides = newOverrides(f, groups[:2]...) // etcd, uplink
	return o
}

const doctorHelp = `flanneld doctor finds out why containers of different hosts do not reach each other. It checks etcd,
the leases, this host's settings, the packet filter and the paths to the other hosts, prints ✓, ✗ or
? for each check, and for each ✗ the command that mends it: the most probable cause first. It changes
nothing, works while the daemon is down, and ends within 10 seconds. Run it as root.

The settings of the daemon are those of the one that runs, else those of its systemd unit. Variables
such as FLANNELD_ETCD_ENDPOINTS and the flags below override them.

Exit code: 0 if nothing is wrong, 1 if something is, 2 for a bad command line, 3 if it cannot run.`

// newDoctor returns the command "flanneld doctor".
func newDoctor(in *invocation) *cobra.Command {
	c := &cobra.Command{Use: "doctor [--flag=value]...", Args: onlyFlags, Long: doctorHelp}
	o := doctorFlags(c.Flags())
	c.RunE = func(*cobra.Command, []string) error {
		if code := o.run(in.ctx, in.env, in.stdout, in.stderr); code != doctorFine {
			return exitCode(code)
		}
		return nil
	}
	return c
}

// run runs the checks and writes what was asked for.
func (o *doctorOptions) run(ctx context.Context, env []string, stdout, stderr io.Writer) int {
	settings, err := o.doctorSettings(ctx, env)
	if err != nil {
		fmt.Fprintf(stderr, "flanneld doctor: %v\n", err)
		return doctorUsage
	}
	if dir := filepath.Dir(o.bundle); o.bundle != "" {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			fmt.Fprintf(stderr, "flanneld doctor: --bundle: %q: cannot write to %s: %v\n", o.bundle, dir, err)
			return doctorUsage
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "flanneld doctor: not run as root: much cannot be checked")
	}
	run, cancel := context.WithTimeout(ctx, doctor.Limit)
	defer cancel()
	doctor.DiscardLog()
	in := doctor.NewInputs(run, settings)
	style := doctor.Style{Color: isTerminal(stdout) && os.Getenv("NO_COLOR") == ""}
	var each func(doctor.Finding)
	if isTerminal(stdout) && !o.json {
		fmt.Fprintln(stdout, in.Redact.String(settings.Source))
		each = func(f doctor.Finding) { fmt.Fprintln(stdout, style.Line(f)) }
	}
	var files []doctor.File
	var unwritten error
	var collecting sync.WaitGroup
	if o.bundle != "" {
		collecting.Go(func() { files = doctor.Collect(run, in, version) })
	}
	report := doctor.Run(run, doctor.Checks(), in, each)
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "flanneld doctor: interrupted")
		return doctorFailed
	}
	if collecting.Wait(); o.bundle != "" {
		if unwritten = doctor.WriteBundle(o.bundle, report, files, in.Redact); unwritten == nil && !o.json {
			fmt.Fprintf(stderr, "wrote %s\n", o.bundle)
		}
	}
	switch {
	case o.json:
		err = report.JSON(stdout)
	case each != nil:
		err = style.Causes(stdout, report)
	default:
		err = style.Text(stdout, report)
	}
	if err = errors.Join(unwritten, written(err)); err != nil {
		complain(stderr, "flanneld doctor", err)
		return doctorFailed
	}
	if report.Failed() {
		return doctorProblem
	}
	return doctorFine
}

// doctorSettings returns the settings of this host's daemon that the doctor needs.
func (o overrides) doctorSettings(ctx context.Context, env []string) (doctor.Options, error) {
	cl, source, err := o.settings(ctx, env)
	if err != nil {
		return doctor.Options{}, err
	}
	var unresolved error
	if domain := cl.options.EtcdDomain; domain != "" {
		cl.options.Etcd.Endpoints, unresolved = doctor.Resolve(ctx, domain)
	}
	return doctor.Options{
		DomainErr:   unresolved,
		RenewMargin: cl.options.RenewMargin, Secrets: []string{o.daemon.options.Etcd.Password},
		Etcd: cl.options.Etcd, API: cl.options.EtcdAPI, Uplink: cl.options.Uplink, SubnetFile: cl.options.SubnetFile, Domain: cl.options.EtcdDomain, Source: source,
		Status: cl.options.Status,
	}, nil
}

// isTerminal reports whether a reader or writer is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
