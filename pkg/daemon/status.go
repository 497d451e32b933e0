package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/api"
	"flanneld/pkg/pace"
	"flanneld/pkg/status"
)

// answer starts to answer health checks and questions about the status, and returns a function that
// ends it.
func (d *daemon) answer(ctx context.Context) (stop func(), err error) {
	var ends []func()
	stop = func() {
		for _, end := range ends {
			end()
		}
	}
	sources := api.Sources{State: d.state, Status: d.status}
	for _, l := range []struct {
		addr   netip.AddrPort
		flag   string
		what   string
		listen func() (*http.Server, error)
	}{
		{d.options.Healthz, "-healthz-port", "answer health checks", func() (*http.Server, error) {
			return d.state.ListenHealth(d.options.Healthz, d.log)
		}},
		{d.options.Status, "-status-listen", "serve the status", func() (*http.Server, error) {
			return sources.ListenTCP(d.options.Status, d.log)
		}},
	} {
		if l.addr.Port() == 0 {
			continue
		}
		server, err := retry(ctx, d, l.what, pace.IsResourceError, l.listen)
		if err != nil {
			stop()
			return nil, fmt.Errorf("%s: %w", l.what, d.withPortHolder(l.addr, l.flag, err))
		}
		ends = append(ends, func() { server.Close() })
	}
	serving, cancel := context.WithCancel(ctx)
	var socket sync.WaitGroup
	socket.Go(func() {
		sources.ServeSocket(serving, api.SocketPath(d.options.SubnetFile), d.conditions, d.log)
	})
	ends = append(ends, func() {
		cancel()
		socket.Wait()
	})
	return stop, nil
}

// withPortHolder adds the owner of a TCP port to an error of listening.
func (d *daemon) withPortHolder(addr netip.AddrPort, flag string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		if holders, _ := d.kernel.Holders("tcp", addr); len(holders) > 0 {
			return fmt.Errorf("%w: %s has it; choose another %s", err, holders[0], flag)
		}
	}
	return err
}

// status returns the present status. It is called by several goroutines.
func (d *daemon) status() status.Document {
	now := time.Now()
	doc := status.NotRunning(now, "", "")
	doc.Daemon = status.Daemon{Version: d.options.Version, PID: os.Getpid(), Started: d.started, Ready: d.state.Ready()}
	doc.Conditions = d.state.Conditions()
	doc.Store.Prefix, doc.Store.Up = d.options.Etcd.Prefix, d.state.EtcdAnswers()
	doc.Judge()
	return doc
}
