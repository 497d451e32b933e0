// Command flanneld leases a subnet of an overlay network for a host and keeps the kernel's entries
// for its peers in sync. It turns the command line and the environment into daemon.Options, and the
// result of daemon.Run into an exit code: 0 after SIGTERM or SIGINT, 1 if it cannot work or hangs,
// 2 for an invalid command line. With a subcommand it is one of the tools for the operator of a
// daemon instead, see commands.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"flanneld/pkg/daemon"
	"flanneld/pkg/logsink"
)

// version is set at link time.
var version = "dev"

// stopTimeout limits the time from a signal to the exit. Nothing has to be cleaned up, so a
// shutdown takes a moment, or as long as the present operations of the kernel.
const stopTimeout = 5 * time.Second

// gcPercent suits hosts with very many peers: a pass allocates much and keeps little, and a smaller
// heap costs no measurable time. BenchmarkGCPercent shows a fifth less memory with 20,000 peers.
const gcPercent = 40

// flushTimeout limits how long the exit waits for a reader of the log that has stopped.
const flushTimeout = 200 * time.Millisecond

func main() {
	// The reader of the output may end first. With a handler, SIGPIPE does not end the process, and
	// programs that it starts do not ignore the signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	os.Exit(run(ctx, stop, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

func run(ctx context.Context, stop func(), args, env []string, stdout, stderr io.Writer) int {
	rest, ok, err := asSubcommand(args)
	if ok {
		return runSubcommand(&invocation{ctx, env, os.Stdin, stdout, stderr}, rest)
	}
	var cl *commandLine
	if err == nil {
		cl, err = parse(args, env)
	}
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(stdout, help())
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flanneld: %v\nRun 'flanneld --help' for the flags there are.\n", err)
		return 2
	case cl.showVersion:
		fmt.Fprintln(stderr, version)
		return 0
	}
	if cl.dryRun {
		return printDryRun(ctx, cl, stdout, stderr)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := slog.LevelInfo
	if cl.verbosity > 0 {
		level = slog.LevelDebug
	}
	log := openLog(stderr, level)
	for _, w := range cl.warnings {
		log.Warn(w.text, w.fields...)
	}
	log.Info("starting flanneld", "version", version, "etcd_prefix", cl.options.Etcd.Prefix)
	if !mayChangeNetwork() {
		log.Warn("cannot change the network without CAP_NET_ADMIN, run flanneld as root")
	}

	context.AfterFunc(ctx, func() {
		stop() // a second signal kills
		time.AfterFunc(stopTimeout, func() {
			log.Error("shutdown hangs, exiting without it", "duration", stopTimeout, "reason", "still in "+goroutines())
			log.close()
			os.Exit(1)
		})
	})
	defer log.close()
	cl.options.Version = version
	err = daemon.Run(ctx, cl.options, log.Logger)
	log.handler.Flush()
	if err != nil && ctx.Err() == nil {
		log.Error("flanneld failed", "err", err)
		return 1
	}
	log.Info("flanneld stopped, network left in place")
	return 0
}

// daemonLog is the log of the daemon. Only a crash writes to standard error without it.
type daemonLog struct {
	*slog.Logger
	handler *logsink.Handler
	sink    *logsink.Sink
}

func openLog(stderr io.Writer, level slog.Level) *daemonLog {
	if stderr == os.Stderr {
		logsink.Stderr.Unblock()
		stderr = logsink.Stderr
	}
	l := &daemonLog{sink: logsink.New(stderr)}
	l.handler = logsink.NewHandler(l.sink, level)
	l.Logger = slog.New(l.handler)
	stdlog.SetFlags(0)
	stdlog.SetOutput(logsink.Lines(func(line string) { l.Warn("message from a library", "text", line) }))
	return l
}

// close flushes the log, including the numbers of omitted lines.
func (l *daemonLog) close() {
	l.handler.Flush()
	l.sink.Flush(flushTimeout)
}
