package etcdtest

import (
	"net"
	"testing"
)

// TestReservedAddress checks that a reserved address can be listened at again and again, and that
// nobody else gets it in between.
func TestReservedAddress(t *testing.T) {
	address := freeAddress(t)
	for range 2 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		if _, err := net.Dial("tcp", address); err == nil {
			t.Error("somebody listens")
		}
	}
}
