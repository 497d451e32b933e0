package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"flanneld/pkg/cleanup"
	"flanneld/pkg/doctor"

	"github.com/spf13/pflag"
)

// overrides are the flags of a command that override the settings of this host's daemon.
type overrides struct {
	flags  *pflag.FlagSet // of the command
	daemon *commandLine   // the values of those that the daemon has, too
}

// newOverrides defines -subnet-file, and groups of the daemon's flags.
func newOverrides(f *pflag.FlagSet, some ...group) overrides {
	o := overrides{flags: f, daemon: &commandLine{flags: f}}
	for _, g := range some {
		g.flags(o.daemon, f)
	}
	if f.Lookup("subnet-file") == nil {
		f.StringVar(&o.daemon.options.SubnetFile, "subnet-file", cleanup.DefaultSubnetFile, "subnet `file` of the daemon, if several run")
	}
	return o
}

// settings returns the settings of the daemon of this host: of the one that runs, else of its unit,
// overridden by the command's environment and flags. source says where they are from.
func (o overrides) settings(ctx context.Context, env []string) (cl *commandLine, source string, err error) {
	file := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "FLANNELD_SUBNET_FILE="); ok && v != "" {
			file = v
		}
	}
	if o.flags.Changed("subnet-file") {
		file = o.daemon.options.SubnetFile
	}
	daemons, _ := doctor.Daemons(ctx) // a check of the doctor reports the error
	at := slices.IndexFunc(daemons, func(d doctor.Daemon) bool {
		return file == "" || samePath(file, d.SubnetFile())
	})
	var d doctor.Daemon
	if at >= 0 {
		d = daemons[at]
		source = fmt.Sprintf("flanneld runs (PID %d)", d.PID)
	} else {
		d, err = doctor.Unit(ctx)
		source = "no flanneld runs on this host; the settings are those of its unit"
		if err != nil || file != "" && !samePath(file, d.SubnetFile()) {
			d = doctor.Daemon{}
			source = "no flanneld runs on this host, and it has no unit; the settings are those of the command line, and the defaults"
		}
	}
	merged := append(slices.Clone(env), d.Env...)                     // of two equal names, the first one counts
	if cl, err = parse(o.override(d.Args, env), merged); err != nil { // perhaps the flags of another version
		source += fmt.Sprintf(" (without its own, which are not understood: %v)", err)
		cl, err = parse(o.override(nil, env), env)
	}
	return cl, source, err
}

// override returns the arguments of a daemon with those of the command that were given, and without
// those that the command's environment overrides.
func (o overrides) override(args, env []string) []string {
	out := withoutFlags(args, func(name string) bool {
		f := o.flags.Lookup(name)
		return f != nil && f.Changed || slices.ContainsFunc(env, func(kv string) bool {
			v, is := strings.CutPrefix(kv, variableOf(name)+"=")
			return is && v != ""
		})
	})
	known := daemonFlags(&commandLine{})
	o.flags.Visit(func(f *pflag.Flag) {
		if known.Lookup(f.Name) == nil {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				out = append(out, "--"+f.Name+"="+v)
			}
			return
		}
		out = append(out, "--"+f.Name+"="+f.Value.String())
	})
	return out
}

// withoutFlags returns arguments of a daemon without some flags.
func withoutFlags(args []string, unwanted func(name string) bool) (out []string) {
	known := daemonFlags(&commandLine{})
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		f := known.Lookup(name)
		words := 1
		if f != nil && strings.HasPrefix(args[i], "-") && !hasValue && f.NoOptDefVal == "" && i+1 < len(args) {
			words = 2
		}
		if !unwanted(name) || !strings.HasPrefix(args[i], "-") {
			out = append(out, args[i:i+words]...)
		}
		i += words - 1
	}
	return out
}

// samePath reports whether a path is the subnet file of a daemon; empty is the default.
func samePath(path, ofDaemon string) bool {
	if ofDaemon == "" {
		ofDaemon = cleanup.DefaultSubnetFile
	}
	a, errA := filepath.Abs(path)
	b, errB := filepath.Abs(ofDaemon)
	return errA == nil && errB == nil && a == b
}
