package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// A notifySocket is the receiving end of sd_notify(3) for one process.
type notifySocket struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{} // closed when READY=1 has come
	at    time.Time     // when it came; valid once ready is closed
	ended chan struct{} // closed when the reader has ended

	mu       sync.Mutex
	messages []string
}

// listenNotify listens on a file, not on an abstract name: those are local to a network namespace.
func listenNotify(path string) (*notifySocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open notify socket: %w", err)
	}
	s := &notifySocket{path: path, conn: conn, ready: make(chan struct{}), ended: make(chan struct{})}
	go s.read()
	return s, nil
}

func (s *notifySocket) read() {
	defer close(s.ended)
	seen := false
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		message := string(buf[:n])
		s.mu.Lock()
		s.messages = append(s.messages, message)
		s.mu.Unlock()
		if !seen && slices.Contains(strings.Split(message, "\n"), "READY=1") {
			seen, s.at = true, time.Now()
			close(s.ready)
		}
	}
}

func (s *notifySocket) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// close reads what the process sent before it ended and removes the socket.
func (s *notifySocket) close() error {
	s.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	<-s.ended
	s.conn.Close()
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove notify socket: %w", err)
	}
	return nil
}
