package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// FloodStats is the result of a Flood.
type FloodStats struct {
	Sent     int64 // datagrams that the sender's kernel accepted
	Received int64 // datagrams that arrived within Duration
	Duration time.Duration
}

// PerSecond returns the rate at which datagrams arrived.
func (f FloodStats) PerSecond() float64 { return float64(f.Received) / max(f.Duration.Seconds(), 1e-9) }

// floodBatch is the number of datagrams that one system call sends or receives.
const floodBatch = 64

// Flood sends UDP datagrams with size bytes of payload to another endpoint for about the given
// time, as fast as the kernel accepts them, and counts those that arrive in this time. It is no
// error if datagrams are lost.
func (e *Endpoint) Flood(ctx context.Context, to *Endpoint, size int, d time.Duration) (FloodStats, error) {
	stats, err := e.flood(ctx, to, size, d)
	if err != nil {
		return stats, fmt.Errorf("flood %s to %s: %w", e.Name, to.Name, err)
	}
	return stats, nil
}

func (e *Endpoint) flood(ctx context.Context, to *Endpoint, size int, d time.Duration) (stats FloodStats, err error) {
	receiver, err := to.listenFlood()
	if err != nil {
		return stats, err
	}
	defer receiver.Close()
	defer context.AfterFunc(ctx, func() { receiver.Close() })()
	sender, err := e.NS.DialContext(ctx, "udp4", receiver.LocalAddr().String())
	if err != nil {
		return stats, err
	}
	defer sender.Close()
	defer context.AfterFunc(ctx, func() { sender.Close() })()

	start := time.Now()
	end := start.Add(d)
	if err := receiver.SetReadDeadline(end); err != nil {
		return stats, err
	}
	sent := make(chan error, 1)
	go func() {
		var err error
		stats.Sent, err = sendFlood(sender.(*net.UDPConn), size, end)
		sent <- err
	}()
	received, err := receiveFlood(receiver, size, end)
	duration := time.Since(start)
	err = errors.Join(err, <-sent)
	stats.Received, stats.Duration = received, duration
	return stats, cmp.Or(ctx.Err(), err)
}

// listenFlood opens a socket whose buffer is large enough while the reader waits for a processor.
func (e *Endpoint) listenFlood() (conn *net.UDPConn, err error) {
	err = e.NS.Do(func() error {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: e.Addr.AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := setOption(conn, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		conn.Close()
		return nil, fmt.Errorf("set SO_RCVBUFFORCE: %w", err)
	}
	return conn, nil
}

// setOption sets an option of a socket.
func setOption(conn syscall.Conn, level, option, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, inner)
}

func sendFlood(conn *net.UDPConn, size int, end time.Time) (sent int64, err error) {
	payload := make([]byte, size)
	batch := make([]ipv4.Message, floodBatch)
	for i := range batch {
		batch[i].Buffers = [][]byte{payload}
	}
	c := ipv4.NewPacketConn(conn)
	for time.Now().Before(end) {
		n, err := c.WriteBatch(batch, 0)
		sent += int64(max(n, 0))
		// The queue of a device is full: count it as a loss.
		if err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return sent, err
		}
	}
	return sent, nil
}

// receiveFlood counts datagrams of a size until a time. It waits in the kernel, as another program
// would, because a runtime that is busy with the sender may wake it much too late.
func receiveFlood(conn *net.UDPConn, size int, end time.Time) (received int64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	batch := make([]ipv4.Message, floodBatch)
	for i := range batch {
		// One more byte, to recognise longer datagrams, which are not counted.
		batch[i].Buffers = [][]byte{make([]byte, size+1)}
	}
	c := ipv4.NewPacketConn(conn)
	for time.Now().Before(end) {
		if readable, err := pollReadable(raw); err != nil {
			return received, err
		} else if !readable {
			continue
		}
		n, err := c.ReadBatch(batch, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return received, err
		}
		for _, m := range batch[:n] {
			if m.N == size {
				received++
			}
		}
	}
	return received, nil
}

// pollReadable waits up to 10 ms until there is something to read.
func pollReadable(raw syscall.RawConn) (readable bool, err error) {
	var inner error
	err = raw.Control(func(fd uintptr) {
		var n int
		n, inner = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10)
		readable = n > 0
	})
	if inner == unix.EINTR {
		inner = nil
	}
	return readable, errors.Join(err, inner)
}
