package lab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// TransferStats is the result of a TCP transfer, measured by the receiver.
type TransferStats struct {
	Bytes    int64
	Duration time.Duration
}

// BitsPerSecond returns the throughput.
func (t TransferStats) BitsPerSecond() float64 {
	return float64(t.Bytes) * 8 / max(t.Duration.Seconds(), 1e-9)
}

// Transfer sends n random bytes to another endpoint by TCP. It fails unless both ends compute the
// same SHA-256.
func (e *Endpoint) Transfer(ctx context.Context, to *Endpoint, n int64) (TransferStats, error) {
	sent, received := sha256.New(), sha256.New()
	stats, err := e.stream(ctx, to, func(w io.Writer) error {
		var seed [32]byte
		for i := range seed {
			seed[i] = byte(rand.Uint32())
		}
		_, err := io.CopyBuffer(io.MultiWriter(w, sent), io.LimitReader(rand.NewChaCha8(seed), n), make([]byte, 256<<10))
		return err
	}, received)
	switch {
	case err != nil:
		return stats, fmt.Errorf("transfer %s to %s: %w", e.Name, to.Name, err)
	case stats.Bytes != n:
		return stats, fmt.Errorf("transfer %s to %s: %d of %d bytes came", e.Name, to.Name, stats.Bytes, n)
	case string(sent.Sum(nil)) != string(received.Sum(nil)):
		return stats, fmt.Errorf("transfer %s to %s: the data that came differ from those sent", e.Name, to.Name)
	}
	return stats, nil
}

// Throughput sends to another endpoint by TCP for about the given time, without checking the data.
func (e *Endpoint) Throughput(ctx context.Context, to *Endpoint, d time.Duration) (TransferStats, error) {
	stats, err := e.stream(ctx, to, func(w io.Writer) error {
		block := make([]byte, 256<<10)
		for end := time.Now().Add(d); time.Now().Before(end); {
			if _, err := w.Write(block); err != nil {
				return err
			}
		}
		return nil
	}, nil)
	if err != nil {
		return stats, fmt.Errorf("measure throughput %s to %s: %w", e.Name, to.Name, err)
	}
	return stats, nil
}

// stream connects e to another endpoint, sends what write writes and copies what arrives to check,
// unless that is nil.
func (e *Endpoint) stream(
	ctx context.Context, to *Endpoint, write func(io.Writer) error, check io.Writer,
) (TransferStats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listener, err := to.NS.Listen(ctx, "tcp", net.JoinHostPort(to.Addr.String(), "0"))
	if err != nil {
		return TransferStats{}, err
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()

	type result struct {
		stats TransferStats
		err   error
	}
	received := make(chan result, 1)
	go func() {
		stats, err := receive(ctx, listener, check)
		received <- result{stats, err}
	}()
	err = e.send(ctx, listener.Addr().String(), write)
	if err != nil {
		cancel() // else the receiver would wait for more
	}
	r := <-received
	if err == nil {
		err = r.err
	}
	return r.stats, err
}

func (e *Endpoint) send(ctx context.Context, address string, write func(io.Writer) error) error {
	conn, err := e.NS.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := write(conn); err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	// Wait until the receiver has read everything, so that its clock counts and not the socket
	// buffer.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		return cmp.Or(ctx.Err(), err)
	}
	return nil
}

func receive(ctx context.Context, listener net.Listener, check io.Writer) (TransferStats, error) {
	conn, err := listener.Accept()
	if err != nil {
		return TransferStats{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := readInBulk(conn.(*net.TCPConn)); err != nil {
		return TransferStats{}, err
	}
	var stats TransferStats
	start := time.Now()
	buf := make([]byte, 256<<10)
	for {
		n, err := conn.Read(buf)
		stats.Bytes += int64(n)
		stats.Duration = time.Since(start)
		if check != nil {
			check.Write(buf[:n])
		}
		if err == io.EOF {
			return stats, nil
		}
		if err != nil {
			return stats, err
		}
	}
}

// readInBulk makes the kernel wake the receiver only for much data or the end. If it woke for every
// segment, it would spend most of its time on waking up, and short paths would look slower than
// long ones, on which more data arrive at once.
func readInBulk(conn *net.TCPConn) error {
	if err := setOption(conn, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 128<<10); err != nil {
		return fmt.Errorf("set SO_RCVLOWAT: %w", err)
	}
	return nil
}
