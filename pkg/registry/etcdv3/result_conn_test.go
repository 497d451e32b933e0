package etcdv3

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// ended is a connection that the server has closed: a write fails at once, and the server's last
// message can still be read later.
type ended struct {
	net.Conn
	said  error
	bytes int
	after time.Duration
}

func (c ended) Write([]byte) (int, error) { return 0, unix.EPIPE }

func (c ended) Read([]byte) (int, error) {
	<-time.After(c.after)
	return c.bytes, c.said
}

// TestWriteFailsForWhatTheServerSaid: a write to a connection that the server has closed returns
// the error from the server's last message, and not before the reader of the connection has
// received it.
func TestWriteFailsForWhatTheServerSaid(t *testing.T) {
	refused := errors.New("remote error: tls: bad certificate")
	for name, c := range map[string]struct {
		conn ended
		want error
		told []error
		took time.Duration
	}{
		"refused":             {ended{said: refused, after: time.Second}, refused, []error{refused}, time.Second},
		"ended":               {ended{said: io.EOF}, io.EOF, []error{io.EOF}, 0},
		"answered before":     {ended{bytes: 1}, unix.EPIPE, []error{nil}, 0},
		"nothing comes":       {ended{said: refused, after: time.Hour}, unix.EPIPE, nil, refusalTimeout},
		"closed on this side": {ended{said: net.ErrClosed, after: time.Second}, net.ErrClosed, nil, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tells := make(chan error, 2) // the second would be one too many
				h := newResultConn(c.conn, func(err error) { tells <- err })
				read := make(chan error)
				go func() {
					_, err := h.Read(make([]byte, 9))
					read <- err
				}()
				begin := time.Now()
				_, err := h.Write([]byte("preface"))
				if !errors.Is(err, c.want) || time.Since(begin) != c.took {
					t.Errorf("%v after %v, want %v after %v", err, time.Since(begin), c.want, c.took)
				}
				var told []error // by now
				for range len(tells) {
					told = append(told, <-tells)
				}
				if len(told) != len(c.told) || len(told) == 1 && told[0] != c.told[0] {
					t.Errorf("told %v, want %v", told, c.told)
				}
				<-read
			})
		})
	}
}
