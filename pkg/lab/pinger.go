package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/lab/wait"
)

// A Pinger sends echo requests at a fixed rate in the background and counts the replies. It shows
// whether and for how long traffic was interrupted.
type Pinger struct {
	socket *echoSocket
	stop   context.CancelFunc
	sender sync.WaitGroup
	ended  sync.WaitGroup

	mu       sync.Mutex
	sent     []time.Time // by sequence number
	answered []bool
	rtts     []time.Duration
}

// PingStats is the result of a Pinger.
type PingStats struct {
	Sent, Received, Lost int
	// Outage is the longest time without traffic: from the first of several lost requests to the
	// next answered one, or to the last request. It is 0 if nothing was lost.
	Outage time.Duration
	RTTs   []time.Duration // of the answered requests, in the order of the replies
}

// StartPinger sends requests of default size at an interval until Stop. A request that cannot be
// sent is lost. It returns an error if there is no route.
func (e *Endpoint) StartPinger(to netip.Addr, interval time.Duration) (*Pinger, error) {
	socket, err := e.openEcho(context.Background(), to, PingOptions{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pinger{socket: socket, stop: cancel}
	p.sender.Add(1)
	p.ended.Add(1)
	go p.send(ctx, interval)
	go p.receive()
	return p, nil
}

// Stop stops sending, waits up to half a second (longer on a slow machine) for outstanding replies
// and returns the result. Call it once.
func (p *Pinger) Stop() PingStats {
	p.stop()
	p.sender.Wait() // a request sent after the last check would count as lost
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(wait.Slow())*500*time.Millisecond)
	defer cancel()
	wait.Until(ctx, func() error {
		if p.Stats().Lost > 0 {
			return errors.New("replies are missing")
		}
		return nil
	})
	p.socket.conn.Close()
	p.ended.Wait()
	return p.Stats()
}

// Stats returns the result so far. Requests without a reply count as lost.
func (p *Pinger) Stats() PingStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := PingStats{Sent: len(p.sent), Received: len(p.rtts), Lost: len(p.sent) - len(p.rtts), RTTs: slices.Clone(p.rtts)}
	var since time.Time
	for i, at := range p.sent {
		if !p.answered[i] && since.IsZero() {
			since = at
		}
		if !since.IsZero() {
			stats.Outage = max(stats.Outage, at.Sub(since))
		}
		if p.answered[i] {
			since = time.Time{}
		}
	}
	return stats
}

func (p *Pinger) send(ctx context.Context, interval time.Duration) {
	defer p.sender.Done()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		p.mu.Lock()
		seq := len(p.sent)
		p.sent, p.answered = append(p.sent, time.Now()), append(p.answered, false)
		p.mu.Unlock()
		p.socket.send(uint64(seq)) // after an error, the request is lost
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Pinger) receive() {
	defer p.ended.Done()
	for {
		seq, err := p.socket.receive()
		at := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error, reported once: the request is lost, the socket remains usable
		}
		p.mu.Lock()
		if seq < uint64(len(p.answered)) && !p.answered[seq] {
			p.answered[seq] = true
			p.rtts = append(p.rtts, at.Sub(p.sent[seq]))
		}
		p.mu.Unlock()
	}
}
