// Package relay forwards connections.
package relay

import (
	"io"
	"net"
)

// Serve forwards connections from a listener to those that dial opens, until the listener is
// closed.
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

// Copy copies data between two connections in both directions until one ends, and closes far.
func Copy(near, far net.Conn) {
	defer far.Close()
	go func() {
		io.Copy(far, near)
		far.Close()
	}()
	io.Copy(near, far)
}
