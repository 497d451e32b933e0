package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"flanneld/pkg/api"
	"flanneld/pkg/metrics"
	"flanneld/pkg/pace"
	"flanneld/pkg/subnetenv"
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
	sources := api.Sources{State: d.state, Status: d.status, Metrics: metrics.New(d.metrics, d.options.PerPeer)}
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
		sources.ServeSocket(serving, subnetenv.SocketPath(d.options.SubnetFile), d.conditions, d.log)
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
