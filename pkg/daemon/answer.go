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
// ends it. Only the health port must be available at the start: whoever watches it would take a
// daemon without it for a dead one.
func (d *daemon) answer(ctx context.Context) (stop func(), err error) {
	var health *http.Server
	if d.options.Healthz.Port() != 0 {
		health, err = retry(ctx, d, "answer health checks", pace.IsResourceError, func() (*http.Server, error) {
			return d.state.ListenHealth(d.options.Healthz, d.log)
		})
		if err != nil {
			return nil, fmt.Errorf("answer health checks: %w", d.withPortHolder(d.options.Healthz, "-healthz-port", err))
		}
	}
	sources := api.Sources{State: d.state, Status: d.status, Plan: d.plan, Metrics: metrics.New(d.metrics, d.options.PerPeer)}
	d.addPage(&sources)
	serving, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		sources.ServeSocket(serving, subnetenv.SocketPath(d.options.SubnetFile), d.conditions, d.log)
	})
	if d.options.Status.Port() != 0 {
		explain := func(err error) error { return d.withPortHolder(d.options.Status, "-status-listen", err) }
		tasks.Go(func() { sources.ServeTCP(serving, d.options.Status, explain, d.conditions, d.log) })
	}
	return func() {
		if health != nil {
			health.Close()
		}
		cancel()
		tasks.Wait()
	}, nil
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
