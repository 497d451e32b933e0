// Package relay passes connections on to somewhere else.
package relay

import (
	"io"
	"net"
)

// Serve passes what a listener accepts on to where dial connects, until the listener is closed.
func Serve(l net.Listener, dial func() (net.Conn, error)) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer near.Close()
			far, err := dial()
			if err != nil {
				return
			}
			Copy(near, far)
		}()
	}
}

// Copy copies what arrives at either connection to the other one until one ends, and closes far.
func Copy(near, far net.Conn) {
	defer far.Close()
	go func() {
		io.Copy(far, near)
		far.Close()
	}()
	io.Copy(near, far)
}
