package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"flanneld/pkg/api"
	"flanneld/pkg/doctor"
	"flanneld/pkg/status"
)

// watchEvery is the time between two requests of "flanneld status --watch".
const watchEvery = 2 * time.Second

// statusOptions are the flags of "flanneld status".
type statusOptions struct {
	subnetFile       string
	json, watch, all bool
	shown            bool // something is on the screen
}

// newStatus returns the command "flanneld status".
func newStatus(in *invocation) *cobra.Command {
	var o statusOptions
	c := &cobra.Command{
		Use: "status [--flag=value]...", Args: onlyFlags, Long: statusHelp,
		RunE: func(*cobra.Command, []string) error {
			if err := checkSubnetFile(o.subnetFile); err != nil {
				return err
			}
			return o.run(in)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.all, "all", false, "list all peers, instead of those that are not fine")
	f.BoolVar(&o.json, "json", false, "print the status as JSON; README.md describes its fields")
	f.BoolVar(&o.watch, "watch", false, "print the status again every 2 seconds, until interrupted")
	in.subnetFileFlag(f, &o.subnetFile, "subnet `file` of the daemon; only needed if the daemon has another one")
	return c
}

const statusHelp = `flanneld status asks the flanneld of this host how it is. The first line is the verdict and the worst
reason: ok, degraded (the network works, but something is wrong) or down (this host has no subnet, or
its part of the network cannot work). Then follow the state of this host, what is wrong with it, the
commands that mend it, and the peers that are not fine. What is not known is shown as unknown.

It needs to be run as root, and changes nothing. 'flanneld doctor' finds causes.

Exit code: 0 for ok, 1 for degraded, 2 for down, which includes that flanneld does not run or does
not answer. If it cannot be asked, and for a bad command line, it is 2 and nothing is printed but the
error.`

// run prints the status, and returns its exit code. With -watch, it ends when it is interrupted, with
// exit code 0.
func (o *statusOptions) run(in *invocation) error {
	client := api.Dial(o.subnetFile)
	for {
		d, err := ask(in.ctx, client, o.subnetFile)
		if o.watch && in.ctx.Err() != nil {
			return nil
		}
		var printed error
		if err == nil {
			printed = written(o.print(in.stdout, d))
		}
		if failed := cmp.Or(err, printed); failed != nil {
			complain(in.stderr, "flanneld status", failed)
		}
		switch {
		case printed != nil, err != nil && !o.watch:
			return exitCode(2)
		case !o.watch:
			return verdictCode(d.Verdict)
		}
		select {
		case <-in.ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

// ask returns the status of a daemon, also of one that does not run or does not answer. An error
// says nothing about the daemon.
func ask(ctx context.Context, client *api.Client, subnetFile string) (status.Document, error) {
	d, err := client.Status(ctx)
	switch {
	case errors.Is(err, api.ErrNotRunning):
		return status.NotRunning(time.Now(), status.VerdictDown, err.Error()+elsewhere(ctx, subnetFile)), nil
	case errors.Is(err, api.ErrNoAnswer):
		return status.NotRunning(time.Now(), status.VerdictDown, err.Error()), nil
	case errors.Is(err, fs.ErrPermission):
		return d, fmt.Errorf("%w; must be run as root", err)
	}
	return d, err
}

// elsewhere returns which flannelds of this host have another subnet file, for one who has asked the
// wrong one.
func elsewhere(ctx context.Context, subnetFile string) (text string) {
	daemons, _ := doctor.Daemons(ctx)
	for _, d := range daemons {
		if file := d.SubnetFile(); d.Args != nil && !d.Foreign && !samePath(subnetFile, file) {
			text += fmt.Sprintf("; another one runs (PID %d), with -subnet-file=%s", d.PID, file)
		}
	}
	return text
}

func (o *statusOptions) print(out io.Writer, d status.Document) error {
	if o.json {
		e := json.NewEncoder(out)
		if !o.watch { // then it is a line for each
			e.SetIndent("", "  ")
		}
		return e.Encode(d)
	}
	terminal := isTerminal(out) && os.Getenv("TERM") != "dumb" // then it is a file
	text := d.Text(status.Style{All: o.all, Aligned: terminal, Colors: terminal && os.Getenv("NO_COLOR") == ""})
	switch {
	case o.watch && terminal:
		text = sizeOf(out.(*os.File)).show(text)
		if !o.shown { // most terminals keep what was there
			text = "\x1b[2J" + text
		}
		o.shown = true
	case o.watch:
		text = d.Now.Format(time.RFC3339) + "\n" + text + "\n"
	}
	_, err := io.WriteString(out, text)
	return err
}

// verdictCode returns the exit code for a verdict.
func verdictCode(v status.Verdict) error {
	switch v {
	case status.VerdictOK:
		return nil
	case status.VerdictDegraded:
		return exitCode(1)
	}
	return exitCode(2)
}
