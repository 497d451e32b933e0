package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"flanneld/pkg/subnetenv"
)

// answers measures what the daemon's socket answers among many peers, and single changes while it is
// asked without a pause.
func (s *scale) answers(ctx context.Context) ([][]string, error) {
	rows := [][]string{{"", "MEDIAN", "WORST", "OF", "WANTED"}}
	if s.watched.process == nil {
		return rows, errNotWatched
	}
	n := s.plan.changes
	for _, path := range []struct{ name, wanted string }{{"/status", "≤ 300 ms"}, {"/metrics", "≤ 200 ms"}} {
		s.progress("GET %s, %d times", path.name, n)
		var took []time.Duration
		for range n {
			begun := time.Now()
			if err := s.ask(ctx, path.name); err != nil {
				return rows, err
			}
			took = append(took, time.Since(begun))
			if err := window(ctx, changePause); err != nil { // a request at a time, as a monitoring system sends them
				return rows, err
			}
		}
		rows = append(rows, []string{"GET " + path.name, milliseconds(median(took)), milliseconds(quantile(took, 1)), fmt.Sprint(n), path.wanted})
	}
	for _, asked := range []bool{false, true} {
		name, wanted := "a peer joins", "≤ 20 ms"
		if asked {
			name, wanted = "a peer joins, during requests without a pause", ""
		}
		s.progress("%s, %d times", name, n)
		took, err := s.joinWhileAsked(ctx, n, asked)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, []string{name, milliseconds(median(took)), milliseconds(quantile(took, 1)), fmt.Sprint(n), wanted})
	}
	return rows, s.watched.check()
}

// joinWhileAsked lets peers join, and leave again, while the status and the metrics are asked for, if
// asked is set.
func (s *scale) joinWhileAsked(ctx context.Context, n int, asked bool) ([]time.Duration, error) {
	asking, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	if asked {
		for _, path := range []string{"/status", "/metrics"} {
			clients.Go(func() {
				for asking.Err() == nil {
					_ = s.ask(asking, path) // measured above
				}
			})
		}
	}
	took, _, err := s.series(ctx, n, 0, s.join)
	cancel()
	clients.Wait()
	if err == nil {
		_, _, err = s.series(ctx, n, 0, s.deleteKey)
	}
	return took, err
}

// ask sends a request to the watched daemon's socket and reads the answer.
func (s *scale) ask(ctx context.Context, path string) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", subnetenv.SocketPath(s.watched.host.SubnetFile))
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flanneld"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask for %s: %s", path, resp.Status)
	}
	return nil
}
