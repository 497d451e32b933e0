package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/daemon"

	"github.com/spf13/pflag"
)

// errHelp reports that the user asked for help.
var errHelp = errors.New("help asked for")

// commandLine is the parsed command line and environment.
type commandLine struct {
	flags       *pflag.FlagSet
	options     daemon.Options
	showVersion bool
	dryRun      bool
	verbosity   int
	warnings    []warning

	endpoints, publicIP, canReach, healthzIP, statusListen string
	margin, resync, healthzPort                            int
}

// warning is a log line about the command line, which is parsed before there is a log.
type warning struct {
	text   string
	fields []any
}

// parse parses flags and FLANNELD_* variables; flags take precedence. Long flags have one dash or
// two.
func parse(args, env []string) (*commandLine, error) {
	cl := &commandLine{}
	cl.flags = daemonFlags(cl)
	if rest := withoutPath(args); len(rest) < len(args) {
		cl.warnings = append(cl.warnings, warning{"ignored leading argument", []any{"argument", args[0]}})
		args = rest
	}
	if err := parseFlags(cl.flags, args); err != nil || cl.showVersion {
		return cl, err
	}
	cl.environment(env)
	if err := cl.checkObsolete(); err != nil {
		return cl, err
	}
	return cl, cl.check()
}

// withoutPath removes the path of the program, with which commands for images without an entrypoint
// begin.
func withoutPath(args []string) []string {
	if len(args) > 0 && strings.HasPrefix(args[0], "/") && filepath.Base(args[0]) == "flanneld" {
		return args[1:]
	}
	return args
}

// daemonFlags defines the flags of the daemon, which set the values of cl.
func daemonFlags(cl *commandLine) *pflag.FlagSet {
	f := newFlags("flanneld")
	for _, g := range groups {
		g.flags(cl, f)
	}
	defineWithoutEffect(f)
	return f
}

// newFlags returns a set without flags, for parseFlags.
func newFlags(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SortFlags = false
	f.SetInterspersed(false)
	f.Usage = func() {}
	return f
}

// parseFlags parses arguments that must all be flags.
func parseFlags(flags *pflag.FlagSet, args []string) error {
	args, err := twoDashes(flags, args, false)
	if err != nil {
		return err
	}
	if err := flags.Parse(args); err != nil {
		return plain(err)
	}
	return strayArgument(flags.Args())
}

// flagNames returns the names of flags that the help shows.
func flagNames(flags *pflag.FlagSet) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// strayArgument returns an error if there are arguments that are no flags.
func strayArgument(stray []string) error {
	if len(stray) == 0 {
		return nil
	}
	hint := ""
	if _, err := strconv.ParseBool(stray[0]); err == nil {
		hint = "; a boolean flag takes its value after an equals sign: --flag=" + stray[0]
	}
	return fmt.Errorf("unexpected argument %q: must be a flag%s", stray[0], hint)
}

// twoDashes replaces -name by --name. It skips the values of flags, which may begin with a dash
// too. Flags may follow other arguments if mixed is set.
func twoDashes(flags *pflag.FlagSet, args []string, mixed bool) ([]string, error) {
	out := slices.Clone(args)
	for i := 0; i < len(out); i++ {
		a := out[i]
		if argument := len(a) < 2 || a[0] != '-'; a == "--" || argument && !mixed {
			break // the rest are arguments
		} else if argument {
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if name == "h" || name == "help" {
			return nil, errHelp
		}
		f := flags.Lookup(name)
		if f == nil || strings.HasPrefix(a, "---") {
			return nil, fmt.Errorf("unknown flag %s%s", a, didYouMean(name, "--", flagNames(flags)))
		}
		if !strings.HasPrefix(a, "--") {
			out[i] = "-" + a
		}
		if !hasValue && f.NoOptDefVal == "" {
			i++ // skip its value
		}
	}
	return out, nil
}

// variableOf returns the environment variable of a flag.
func variableOf(flag string) string {
	return "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment sets flags that are not on the command line from their FLANNELD_ variables. An
// invalid value is only logged, because in the original such a variable does not prevent the start.
func (cl *commandLine) environment(env []string) {
	names := map[string]string{}
	cl.flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "version" {
			names[variableOf(f.Name)] = f.Name
		}
	})
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, "FLANNELD_") || value == "" {
			continue
		}
		name, known := names[key]
		switch {
		case !known:
			cl.warnings = append(cl.warnings, warning{"ignored unknown environment variable", []any{"variable", key}})
		case !cl.flags.Changed(name):
			if err := cl.flags.Set(name, value); err != nil {
				cl.warnings = append(cl.warnings, warning{"ignored environment variable with an invalid value", []any{"variable", key, "err", plain(err)}})
			}
		}
	}
}

// checkObsolete warns about flags without effect, and refuses those that request an unsupported
// mode.
func (cl *commandLine) checkObsolete() error {
	var idle []string
	var refused error
	cl.flags.Visit(func(f *pflag.Flag) {
		switch why, idles := f.Annotations[noEffect]; {
		case !idles:
		case why[0] != "" && f.Value.String() != f.DefValue && refused == nil:
			refused = fmt.Errorf("--%s is not supported: %s", f.Name, why[0])
		default:
			idle = append(idle, "--"+f.Name)
		}
	})
	if refused == nil && len(idle) > 0 {
		cl.warnings = append(cl.warnings, warning{"ignored flags that have no effect", []any{"flags", strings.Join(idle, ", ")}})
	}
	return refused
}

// check converts the flags into options. Its error says which value is invalid.
func (cl *commandLine) check() (err error) {
	o := &cl.options
	for e := range strings.SplitSeq(cl.endpoints, ",") {
		if e = strings.TrimSpace(e); e != "" {
			o.Etcd.Endpoints = append(o.Etcd.Endpoints, e)
		}
	}
	if len(o.Etcd.Endpoints) == 0 {
		return bad("etcd-endpoints", cl.endpoints, "a comma separated list of URLs")
	}
	o.Etcd.Prefix = path.Join(o.Etcd.Prefix) // normalised for keys, log and suggested commands
	switch o.EtcdAPI {
	case "auto", "v2", "v3":
	default:
		return bad("etcd-api", string(o.EtcdAPI), "auto, v2 or v3")
	}
	if o.EtcdDomain != "" && cl.flags.Changed("etcd-endpoints") {
		return bad("etcd-discovery-srv", o.EtcdDomain, "empty if --etcd-endpoints is given")
	}
	if cl.margin < 1 || cl.margin > 1439 {
		return bad("subnet-lease-renew-margin", fmt.Sprint(cl.margin), "1 to 1439")
	}
	o.RenewMargin = time.Duration(cl.margin) * time.Minute
	if cl.resync < 1 || cl.resync > 3600 {
		return bad("iptables-resync", fmt.Sprint(cl.resync), "1 to 3600")
	}
	o.Rules.Resync = time.Duration(cl.resync) * time.Second
	if cl.healthzPort < 0 || cl.healthzPort > 65535 {
		return bad("healthz-port", fmt.Sprint(cl.healthzPort), "0 (off) to 65535")
	}
	if o.Probes != 0 && (o.Probes < 100*time.Millisecond || o.Probes > time.Hour) {
		return bad("probe-interval", o.Probes.String(), "0 (off) or 100ms to 1h")
	}
	healthzIP, err := netip.ParseAddr(cl.healthzIP)
	if err != nil {
		return bad("healthz-ip", cl.healthzIP, "an IP address")
	}
	o.Healthz = netip.AddrPortFrom(healthzIP, uint16(cl.healthzPort))
	if o.Status, err = listenAddr("status-listen", cl.statusListen); err != nil {
		return err
	}
	if o.SubnetFile == "" {
		return bad("subnet-file", "", "a path")
	}
	for _, r := range o.Uplink.Regexes {
		if _, err := regexp.Compile(r); err != nil {
			return bad("iface-regex", r, "a regular expression: "+err.Error())
		}
	}
	if o.Uplink.PublicIP, err = ipv4("public-ip", cl.publicIP); err != nil {
		return err
	}
	o.Uplink.CanReach, err = ipv4("iface-can-reach", cl.canReach)
	return err
}

// listenAddr parses an address and port to listen on. Without an address, it is all IPv4 addresses.
func listenAddr(name, value string) (netip.AddrPort, error) {
	if value == "" {
		return netip.AddrPort{}, nil
	}
	full := value
	if strings.HasPrefix(value, ":") {
		full = "0.0.0.0" + value
	}
	a, err := netip.ParseAddrPort(full)
	if err != nil || a.Port() == 0 {
		return netip.AddrPort{}, bad(name, value, "an IP address and a port, such as 127.0.0.1:9285")
	}
	return a, nil
}

func ipv4(name, value string) (netip.Addr, error) {
	if value == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}, bad(name, value, "an IPv4 address such as 198.51.100.7")
	}
	return a, nil
}

func bad(name, value, accepted string) error {
	return fmt.Errorf("--%s: %q: must be %s", name, value, accepted)
}

// plain returns an error of the flag library in the form of bad.
func plain(err error) error {
	var invalid *pflag.InvalidValueError
	var without *pflag.ValueRequiredError
	switch {
	case errors.As(err, &without):
		return fmt.Errorf("--%s: must have a value", without.GetSpecifiedName())
	case errors.As(err, &invalid):
		accepted := "true or false"
		switch invalid.GetFlag().Value.Type() {
		case "int":
			accepted = "a whole number"
		case "duration":
			accepted = "a time such as 500ms, 2s or 1m"
		}
		return bad(invalid.GetFlag().Name, invalid.GetValue(), accepted)
	}
	return err
}
