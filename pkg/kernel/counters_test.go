package kernel

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCounters: what the uplink transmits is counted by the kernel, as another library reads it.
func TestCounters(t *testing.T) {
	b := newBed(t)
	before, err := b.k.Counters(uplink)
	b.must(err)
	err = b.k.ns.Do(func() error {
		c, err := net.Dial("udp", "192.0.2.7:9") // asked for by ARP
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, 100))
		return err
	})
	b.must(err)
	after, err := b.k.Counters(uplink)
	b.must(err)
	if after.Transmit.Packets <= before.Transmit.Packets || after.Transmit.Bytes <= before.Transmit.Bytes {
		t.Errorf("before %+v, after %+v", before, after)
	}
	s := b.link(uplink).Attrs().Statistics // read later
	if s.TxPackets < after.Transmit.Packets || s.TxBytes < after.Transmit.Bytes || s.RxPackets < after.Receive.Packets {
		t.Errorf("counters %+v, want at most %+v", after, *s)
	}
	if _, err := b.k.Counters("none"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("counters of no link: %v", err)
	}
}

// TestParseCounters: each counter has its place, and too few are refused.
func TestParseCounters(t *testing.T) {
	var b []byte
	for i := range uint64(24) {
		b = binary.NativeEndian.AppendUint64(b, i+1)
	}
	got, err := parseCounters(b)
	if want := (Counters{Traffic{3, 1, 7}, Traffic{4, 2, 8}}); err != nil || got != want {
		t.Errorf("counters %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseCounters(b[:63]); err == nil {
		t.Error("too short a message is accepted")
	}
}
