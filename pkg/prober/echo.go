package prober

import (
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

const (
	// text begins the data of an echo request, for people who see it in a packet dump.
	text = "flanneld probe: "
	// tokenSize is the size of the token after the text, by which an answer is recognized.
	tokenSize = 16

	echoHeader = 8
	// smallSize is the size of a small probe in bytes, including the IP header.
	smallSize = ipv4.HeaderLen + echoHeader + len(text) + tokenSize
	// maxSize is the maximum size of an IP packet.
	maxSize = 1<<16 - 1
)

// echo is what an echo request and its reply have in common.
type echo struct {
	addr  netip.Addr // of the peer
	seq   uint16
	token [tokenSize]byte
	size  int // of the packet in bytes, including the IP header
}

// encode returns the ICMP message of a request (RFC 792).
func (e echo) encode(id uint16) ([]byte, error) {
	data := make([]byte, e.size-ipv4.HeaderLen-echoHeader)
	copy(data[copy(data, text):], e.token[:])
	return (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(id), Seq: int(e.seq), Data: data}}).Marshal(nil)
}

// decode parses the ICMP message of a reply to a request with an id, and reports whether it is one.
func decode(from netip.Addr, id uint16, message []byte) (e echo, ok bool) {
	const protocol = 1 // ICMP for IPv4
	m, err := icmp.ParseMessage(protocol, message)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply || m.Code != 0 {
		return echo{}, false
	}
	body, ok := m.Body.(*icmp.Echo)
	if !ok || body.ID != int(id) || len(body.Data) < len(text)+tokenSize || string(body.Data[:len(text)]) != text {
		return echo{}, false
	}
	return echo{
		addr: from, seq: uint16(body.Seq), token: [tokenSize]byte(body.Data[len(text):]),
		size: ipv4.HeaderLen + len(message),
	}, true
}
