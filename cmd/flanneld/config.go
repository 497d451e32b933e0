package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"flanneld/pkg/configdiff"
	"flanneld/pkg/operator"
	"flanneld/pkg/status"

	"github.com/spf13/cobra"
)

// Exit codes of the commands of an operator.
const (
	operatorRefused = 1 // it is invalid, would do harm, or is not there
	operatorUnknown = 3 // etcd does not answer, or denies it
)

// newConfig returns the command "flanneld config".
func newConfig(in *invocation) *cobra.Command {
	return newParent("config", configHelp, newConfigGet(in), newConfigSet(in), newConfigCheck(in))
}

const configHelp = `flanneld config shows, checks and changes the network config in etcd: in the API, v2 or v3, in which
the daemon looks for it. The settings for etcd are those of the flanneld that runs, else those of its
unit; environment and flags override them.

  flanneld config get >network.json        # edit the file
  flanneld config check network.json       # what would change, for which hosts
  flanneld config set network.json
  echo '{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}' | flanneld config set -`

// operatorCommand is a command that opens a network in etcd.
type operatorCommand struct {
	*invocation
	overrides
	name string
}

// operate completes a command that opens the network, and has flags of its own before. run returns
// an exitCode, a usageError, an error of etcd, or an operator.RefusedError.
func (in *invocation) operate(c *cobra.Command, name string, run func(*operatorCommand, []string) error) *cobra.Command {
	o := &operatorCommand{invocation: in, name: "flanneld " + name, overrides: newOverrides(c.Flags(), groups[0])}
	c.RunE = func(_ *cobra.Command, args []string) error { return o.result(run(o, args)) }
	return c
}

// result prints an error, and returns its exit code. A usageError is returned as it is.
func (o *operatorCommand) result(err error) error {
	var code exitCode
	switch {
	case err == nil, errors.As(err, &code), errors.As(err, &usageError{}):
		return err
	case errors.As(err, &operator.RefusedError{}), errors.As(err, &outputError{}):
		code = operatorRefused
	default:
		code = operatorUnknown
	}
	complain(o.stderr, o.name, err)
	return code
}

// report complains about an error of the output of a command that changes something. Its exit code says
// what is in etcd, not who has read this.
func (o *operatorCommand) report(err error) {
	if err != nil {
		complain(o.stderr, o.name, err)
	}
}

// usageError is the error of a bad command line.
type usageError struct{ error }

// open opens the network.
func (o *operatorCommand) open() (*operator.Network, error) {
	cl, _, err := o.settings(o.ctx, o.env)
	if err != nil {
		return nil, usageError{err}
	}
	return operator.Open(o.ctx, operator.Options{
		Etcd: cl.options.Etcd, API: cl.options.EtcdAPI, Domain: cl.options.EtcdDomain, SubnetFile: cl.options.SubnetFile,
		Log: warnings(o.stderr),
	})
}

// warnings returns a log of warnings for people, without times.
func warnings(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func newConfigGet(in *invocation) *cobra.Command {
	c := &cobra.Command{Use: "get [--flag=value]...", Short: "print the network config", Args: onlyFlags, Long: `flanneld config get prints the network config as it is in etcd.

Exit code: 0, 1 if there is no config, 2 for a bad command line, 3 if etcd does not answer.`}
	return in.operate(c, "config get", func(o *operatorCommand, _ []string) error {
		n, err := o.open()
		if err != nil {
			return err
		}
		defer n.Close()
		raw, err := n.Config()
		if err != nil {
			return err
		}
		return o.printConfig(raw)
	})
}

// printConfig prints a config as it is, but for what a terminal might interpret.
func (o *operatorCommand) printConfig(raw []byte) error {
	text := strings.TrimRight(string(raw), "\n") + "\n"
	if isTerminal(o.stdout) {
		var b strings.Builder
		for line := range strings.Lines(text) {
			b.WriteString(status.Clean(strings.ReplaceAll(strings.TrimRight(line, "\r\n"), "\t", "    ")) + "\n")
		}
		text = b.String()
	}
	return printText(o.stdout, text)
}

func newConfigCheck(in *invocation) *cobra.Command {
	c := &cobra.Command{Use: "check [--flag=value]... [FILE]", Short: "check a config, and show what it would change", Args: optionalFile, Long: `flanneld config check validates the network config in FILE as the daemon does, shows the difference
from the one in etcd, and what it means for the hosts. "-" is standard input. Without FILE it
validates the config in etcd. It changes nothing.

  flanneld config check network.json

Exit code: 0 if the config is valid, 1 if it is not or cannot be read, 2 for a bad command line, 3 if
etcd does not answer; a FILE is validated in any case.`}
	return in.operate(c, "config check", func(o *operatorCommand, args []string) error {
		if len(args) == 0 {
			return o.checkStored()
		}
		return o.propose(args[0], func(n *operator.Network, _ []byte, r configdiff.Report) error {
			return printText(o.stdout, comparison(n, r))
		})
	})
}

func newConfigSet(in *invocation) *cobra.Command {
	yes := false
	c := &cobra.Command{Use: "set [--flag=value]... [FILE]", Short: "write the network config", Args: optionalFile, Long: `flanneld config set writes the network config in FILE to etcd, if it is valid. "-", or no FILE, is
standard input. It shows the difference from the one in etcd, and what it means for the hosts. If
hosts have to be restarted, or get other subnets, it asks; where it cannot ask, it needs --yes.
Nothing is written if the config in etcd has changed in between.

  flanneld config set network.json
  flanneld config set --yes network.json

Exit code: 0 if etcd has the config, 1 if it was not written because it is invalid or dangerous, or
FILE cannot be read, or another one was written meanwhile, 2 for a bad command line, 3 if etcd does
not answer.`}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before a dangerous change")
	return in.operate(c, "config set", func(o *operatorCommand, args []string) error {
		if len(args) == 0 {
			if isTerminal(o.stdin) {
				return usageError{errNoFile}
			}
			args = []string{"-"}
		}
		return o.set(args[0], yes)
	})
}

var errNoFile = errors.New("FILE: must be the path of a network config, or - for standard input")

// optionalFile is the Args of a command with a file.
func optionalFile(_ *cobra.Command, args []string) error {
	return strayArgument(args[min(1, len(args)):])
}

// readFile reads a config.
func (o *operatorCommand) readFile(path string) ([]byte, error) {
	from := o.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, operator.RefusedError{Err: err}
		}
		defer f.Close()
		from = f
	}
	raw, err := operator.ReadConfig(from)
	if err != nil {
		return nil, operator.RefusedError{Err: err}
	}
	return raw, nil
}

// validate prints everything that is wrong with a config.
func (o *operatorCommand) validate(config []byte) error {
	problems, warnings := operator.Validate(config)
	for _, err := range problems {
		fmt.Fprintf(o.stderr, "%s: %s\n", o.name, status.Clean(err.Error()))
	}
	if len(problems) > 0 {
		return exitCode(operatorRefused)
	}
	for _, text := range warnings {
		fmt.Fprintf(o.stderr, "%s: warning: %s\n", o.name, status.Clean(text))
	}
	return nil
}

// checkStored validates the config in etcd.
func (o *operatorCommand) checkStored() error {
	n, err := o.open()
	if err != nil {
		return err
	}
	defer n.Close()
	raw, err := n.Config()
	if err != nil {
		return err
	}
	if err := o.validate(raw); err != nil {
		return err
	}
	return printText(o.stdout, status.Clean(n.Where())+": valid\n")
}

// comparison returns the text of what a valid config would change.
func comparison(n *operator.Network, r configdiff.Report) string {
	var b strings.Builder
	fmt.Fprintln(&b, status.Clean(n.Where()))
	if len(r.Diff) == 0 {
		return b.String() + "no difference\n"
	}
	for _, l := range r.Diff {
		fmt.Fprintf(&b, "%c %s\n", l.Op, status.Clean(l.Text))
	}
	for _, e := range r.Effects {
		word := "note"
		if e.Dangerous {
			word = "warning"
		}
		fmt.Fprintf(&b, "%s: %s\n", word, status.Clean(e.Text))
	}
	return b.String()
}

// propose validates the config in a file, and calls then with what it would change.
func (o *operatorCommand) propose(path string, then func(n *operator.Network, after []byte, r configdiff.Report) error) error {
	after, err := o.readFile(path)
	if err != nil {
		return err
	}
	if err := o.validate(after); err != nil {
		return err
	}
	n, err := o.open()
	if err != nil {
		return err
	}
	defer n.Close()
	r, err := n.Compare(o.ctx, after)
	if err != nil {
		return err
	}
	return then(n, after, r)
}

// set writes a config.
func (o *operatorCommand) set(path string, yes bool) error {
	return o.propose(path, func(n *operator.Network, after []byte, r configdiff.Report) error {
		o.report(printText(o.stdout, comparison(n, r)))
		if len(r.Diff) == 0 {
			return nil
		}
		if r.Dangerous() && !yes {
			if err := o.confirm(path == "-"); err != nil {
				return err
			}
		}
		if err := n.Write(o.ctx, after); err != nil {
			return err
		}
		o.report(printText(o.stdout, "written\n"))
		return nil
	})
}

// confirm asks whether to write a dangerous config.
func (o *operatorCommand) confirm(used bool) error {
	if used || !isTerminal(o.stdin) {
		return operator.Refuse("not written, because this is dangerous: repeat it with --yes if it is meant")
	}
	fmt.Fprint(o.stderr, "Write it? [y/N] ")
	answers := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(o.stdin, 1<<10)).ReadString('\n') // without an answer, it is no
		answers <- strings.ToLower(strings.TrimSpace(line))
	}()
	return o.answered(o.ctx, answers)
}

// answered returns nil if the answer is yes.
func (o *operatorCommand) answered(ctx context.Context, answers <-chan string) error {
	select {
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
	case <-ctx.Done():
	}
	return operator.Refuse("not written")
}
