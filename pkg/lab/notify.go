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

	"golang.org/x/sys/unix"
)

// endMessage is what a notifySocket sends itself when the process has ended: after everything that
// the process has sent.
const endMessage = "END"

// notify sends a message as sd_notify(3) does.
func notify(path, message string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("open notify socket: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(message)); err != nil {
		return fmt.Errorf("send %s: %w", message, err)
	}
	return nil
}

// A notifySocket is the receiver of sd_notify(3) for one process.
type notifySocket struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{} // closed after READY=1
	at    time.Time     // time of READY=1; valid after ready is closed
	ended chan struct{} // closed when the reader has ended
	seen  bool          // READY=1 was received; used by the reader only

	mu       sync.Mutex
	messages []string
	stored   []*os.File // the descriptor store
	keep     bool       // the store outlives the process
}

// listenNotify listens on a file, not on an abstract name: abstract names are local to a network
// namespace. stored is the initial content of the descriptor store.
func listenNotify(path string, stored []*os.File) (*notifySocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open notify socket: %w", err)
	}
	s := &notifySocket{path: path, conn: conn, ready: make(chan struct{}), ended: make(chan struct{}), stored: stored}
	go s.read()
	return s, nil
}

func (s *notifySocket) read() {
	defer close(s.ended)
	buf, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, nr, _, _, err := s.conn.ReadMsgUnix(buf, rights)
		if err != nil || string(buf[:n]) == endMessage {
			return
		}
		s.receive(string(buf[:n]), rights[:nr])
	}
}

func (s *notifySocket) receive(message string, rights []byte) {
	s.mu.Lock()
	if !s.store(message, rights) {
		s.messages = append(s.messages, message)
	}
	s.mu.Unlock()
	if !s.seen && slices.Contains(strings.Split(message, "\n"), "READY=1") {
		s.seen, s.at = true, time.Now()
		close(s.ready)
	}
}

// store implements the descriptor store of systemd(1), with names. It reports whether the message
// was about the store.
func (s *notifySocket) store(message string, rights []byte) bool {
	name := ""
	for line := range strings.Lines(message) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "FDNAME="); ok {
			name = v
		}
	}
	if strings.HasPrefix(message, "FDSTOREREMOVE=1\n") {
		s.stored = slices.DeleteFunc(s.stored, func(f *os.File) bool {
			if f.Name() != name {
				return false
			}
			f.Close()
			return true
		})
		return true
	}
	controls, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(controls) == 0 {
		return false
	}
	for _, c := range controls {
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			s.stored = append(s.stored, os.NewFile(uintptr(fd), name))
		}
	}
	return true
}

func (s *notifySocket) takeStored() []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored := s.stored
	s.stored = nil
	return stored
}

func (s *notifySocket) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// close receives what the process sent before it ended and removes the socket.
func (s *notifySocket) close() error {
	if err := notify(s.path, endMessage); err != nil {
		s.conn.Close()
	}
	<-s.ended
	s.conn.Close()
	s.mu.Lock()
	keep := s.keep
	s.mu.Unlock()
	if !keep {
		for _, f := range s.takeStored() {
			f.Close() // a stopped service has no store
		}
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove notify socket: %w", err)
	}
	return nil
}
