package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"flanneld/pkg/status"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// subcommand is one of the commands beside the daemon.
type subcommand struct {
	name  string
	make  func(*invocation) *cobra.Command
	short string // for the help of the daemon, which does not create the commands
}

// subcommands are the commands in the order of the help. Each one's RunE returns an exitCode, nil
// for 0, or an error, which is printed and is exit code 2.
var subcommands = []subcommand{
	{"status", newStatus, "show whether the network of this host is healthy"},
	{"doctor", newDoctor, "find out why containers do not reach each other"},
	{"trace", newTrace, "follow a packet between two containers"},
	{"plan", newPlan, "print what flanneld would change now, as commands"},
	{"config", newConfig, "show, check or change the network config"},
	{"leases", newLeases, "list, reserve or release leases"},
	{"cleanup", newCleanup, "remove what flanneld has made on this host"},
	{"completion", newCompletion, "print the completions of a shell"},
	{"man", newMan, "print the manual page"},
}

// invocation is what a command is run with.
type invocation struct {
	ctx            context.Context
	env            []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// outputError is the error of writing the output of a command.
type outputError struct{ error }

// Unwrap returns what has failed.
func (e outputError) Unwrap() error { return e.error }

// written returns the outputError of a write, if there was an error.
func written(err error) error {
	if err != nil {
		err = outputError{err}
	}
	return err
}

func printText(out io.Writer, text string) error {
	_, err := io.WriteString(out, text)
	return written(err)
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return written(e.Encode(v))
}

// complain prints an error of a command. A reader of the output that has gone, such as head, wants to
// know no more.
func complain(stderr io.Writer, name string, err error) {
	if errors.As(err, &outputError{}) && errors.Is(err, syscall.EPIPE) {
		return
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, status.Line(err))
}

// exitCode is the error of a command that has said what is wrong, or that found a bad state.
type exitCode int

// Error implements error.
func (c exitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }

// Names of the commands with which the completion scripts of cobra ask for completions.
var completionRequests = []string{cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}

// asSubcommand returns the arguments from the subcommand on, or false if they are those of the
// daemon. A word that is no subcommand is an error. "help" and a subcommand are those of its help.
func asSubcommand(args []string) (rest []string, ok bool, err error) {
	args = withoutPath(args)
	if len(args) == 0 || args[0] == "" || args[0][0] == '-' {
		return nil, false, nil
	}
	if args[0] == "help" {
		if args = append(args[1:], "--help"); len(args) == 1 {
			return nil, false, errHelp
		}
	}
	known := slices.ContainsFunc(subcommands, func(c subcommand) bool { return c.name == args[0] })
	if known || slices.Contains(completionRequests, args[0]) {
		return args, true, nil
	}
	question := didYouMean(args[0], "", commandNames())
	if question == "" {
		question = didYouMean(args[0], "--", flagNames(daemonFlags(&commandLine{})))
	}
	return nil, false, fmt.Errorf("unknown command %q: must be %s, or none for the daemon%s", args[0], orList(commandNames()), question)
}

// commandNames returns the names of the subcommands.
func commandNames() (names []string) {
	for _, c := range subcommands {
		names = append(names, c.name)
	}
	return names
}

// orList returns words as "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// runSubcommand runs a subcommand and returns its exit code.
func runSubcommand(in *invocation, args []string) int {
	root := newRoot(in)
	if slices.Contains(completionRequests, args[0]) {
		if complete(root, in.stdout, args) != nil {
			return 1
		}
		return 0
	}
	c, args := find(root, args)
	args, err := twoDashes(c.Flags(), args, true)
	if errors.Is(err, errHelp) {
		fmt.Fprint(in.stdout, helpOf(c))
		return 0
	}
	if err == nil {
		root.SetArgs(append(strings.Fields(c.CommandPath())[1:], args...))
		err = root.ExecuteContext(in.ctx)
	}
	var code exitCode
	switch {
	case errors.As(err, &code):
		return int(code)
	case err != nil:
		fmt.Fprintf(in.stderr, "%s: %v\nRun '%[1]s --help' for the flags there are.\n", c.CommandPath(), plain(err))
		if c.Name() == "plan" {
			return planUnknown
		}
		return 2
	}
	return 0
}

// find returns the command that args begin with, and the other arguments.
func find(c *cobra.Command, args []string) (*cobra.Command, []string) {
	for len(args) > 0 {
		at := slices.IndexFunc(c.Commands(), func(sub *cobra.Command) bool { return sub.Name() == args[0] })
		if at < 0 {
			break
		}
		c, args = c.Commands()[at], args[1:]
	}
	return c, args
}

// newRoot returns the tree of commands. The root has the flags of the daemon for completions only.
func newRoot(in *invocation) *cobra.Command {
	root := &cobra.Command{Use: "flanneld", SilenceUsage: true, SilenceErrors: true, Short: "overlay network for containers on many hosts"}
	root.SetOut(in.stdout)
	root.SetErr(in.stderr)
	root.SetHelpCommand(&cobra.Command{Hidden: true})
	root.CompletionOptions.DisableDefaultCmd = true
	cl := &commandLine{}
	for _, g := range groups {
		g.flags(cl, root.Flags())
	}
	completeValues(root)
	for _, s := range subcommands {
		c := s.make(in)
		c.Use, c.Short = s.name+strings.TrimPrefix(c.Use, s.name), s.short
		for _, each := range append(c.Commands(), c) {
			completeValues(each)
			each.Flags().SortFlags = false
			each.Flags().Bool("help", false, "print this help and exit")
			each.Flags().Lookup("help").Hidden = true // in a help that somebody has found already
		}
		root.AddCommand(c)
	}
	return root
}

// newParent returns a command that only has commands below it.
func newParent(name, long string, below ...*cobra.Command) *cobra.Command {
	var names []string
	for _, c := range below {
		names = append(names, c.Name())
	}
	c := &cobra.Command{Use: name + " COMMAND [--flag=value]...", Long: long, Args: cobra.ArbitraryArgs}
	c.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("must be followed by %s", orList(names))
		}
		return fmt.Errorf("unknown command %q: must be %s%s", args[0], orList(names), didYouMean(args[0], "", names))
	}
	c.AddCommand(below...)
	return c
}

// helpOf returns the help of a subcommand.
func helpOf(c *cobra.Command) string {
	var b strings.Builder
	path := strings.TrimSuffix(c.CommandPath(), c.Name())
	fmt.Fprintf(&b, "%s\n\nUsage: %s%s\n", strings.TrimSpace(c.Long), path, c.Use)
	for i, sub := range c.Commands() {
		if i == 0 {
			fmt.Fprintf(&b, "\nCommands (%s COMMAND --help shows more):\n", c.CommandPath())
		}
		fmt.Fprintf(&b, "  %-12s%s\n", sub.Name(), sub.Short)
	}
	if c.Example != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.Trim(c.Example, "\n"))
	}
	if flags := c.Flags().FlagUsagesWrapped(100); flags != "" {
		b.WriteString("\n" + flags)
	}
	return b.String()
}

// onlyFlags is the Args of a command without arguments.
func onlyFlags(_ *cobra.Command, stray []string) error { return strayArgument(stray) }

// subnetFileFlag defines -subnet-file, whose default is the variable of the daemon.
func (in *invocation) subnetFileFlag(f *pflag.FlagSet, to *string, usage string) {
	f.StringVar(to, "subnet-file", defaultSubnetFile, usage)
	for _, kv := range in.env {
		if v, ok := strings.CutPrefix(kv, "FLANNELD_SUBNET_FILE="); ok && v != "" {
			*to = v
		}
	}
}

func checkSubnetFile(path string) error {
	if path == "" {
		return bad("subnet-file", "", "a path")
	}
	return nil
}
