package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/status"
)

const (
	// peerLimit limits the time in which a peer answers.
	peerLimit = 2 * time.Second
	// maxPeerAnswer limits the length of its answer. That of a network with 20,000 peers has 5 MB.
	maxPeerAnswer = 16 << 20
	// maxConditions is how many of its conditions are read.
	maxConditions = 64
)

// askStatus asks another host's flanneld for its status, of which it returns what readPeerStatus
// does. Whoever answers there may say anything.
func askStatus(ctx context.Context, addr netip.AddrPort, ours netip.Prefix) (d status.Document, err error) {
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, Proxy: nil, MaxResponseHeaderBytes: maxAnswer}
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/status", addr), nil)
	if err != nil {
		return d, err
	}
	answer, err := c.Do(r)
	if err != nil {
		return d, withoutURL(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return d, fmt.Errorf("%s answers with HTTP status %d", addr, answer.StatusCode)
	}
	if d, err = readPeerStatus(io.LimitReader(answer.Body, maxPeerAnswer), ours); err != nil {
		return status.Document{}, fmt.Errorf("%s answers what is no status: %w", addr, err)
	}
	return d, nil
}

// readPeerStatus reads a status document without keeping more of it than is needed: of the peers
// only the one with a subnet, and not all conditions. So a hostile document of a few megabytes does
// not become one of gigabytes in memory.
func readPeerStatus(from io.Reader, ours netip.Prefix) (d status.Document, err error) {
	in := json.NewDecoder(from)
	if err := expect(in, '{'); err != nil {
		return d, err
	}
	for in.More() {
		name, err := in.Token()
		if err != nil {
			return d, err
		}
		switch name {
		case "peers":
			var p status.Peer
			err = each(in, &p, func() {
				if p.Subnet == ours && len(d.Peers) == 0 {
					d.Peers = append(d.Peers, p)
				}
			})
		case "conditions":
			var c status.Condition
			err = each(in, &c, func() {
				if len(d.Conditions) < maxConditions {
					d.Conditions = append(d.Conditions, c)
				}
			})
		case "verdict":
			err = in.Decode(&d.Verdict)
		case "network":
			err = in.Decode(&d.Network)
		case "lease":
			err = in.Decode(&d.Lease)
		case "bridge": // null and none are unknown
			if err = in.Decode(&d.Bridge); err == nil && d.Bridge != nil && len(d.Bridge.Device) >= unix.IFNAMSIZ {
				err = fmt.Errorf("no name of an interface has %d bytes", len(d.Bridge.Device))
			}
		case "store":
			var s struct {
				ViewAge *float64 `json:"view_age_seconds"`
			}
			err = in.Decode(&s)
			d.Store.ViewAge = s.ViewAge
		default:
			var unread json.RawMessage
			err = in.Decode(&unread)
		}
		if err != nil {
			return d, err
		}
	}
	return d, expect(in, '}')
}

// each decodes the elements of an array, one after the other, into one value. null is an empty
// array.
func each[T any](in *json.Decoder, into *T, then func()) error {
	first, err := in.Token()
	if err != nil || first == nil {
		return err
	}
	if first != json.Delim('[') {
		return fmt.Errorf("%v is no array", first)
	}
	for in.More() {
		*into = *new(T)
		if err := in.Decode(into); err != nil {
			return err
		}
		then()
	}
	return expect(in, ']')
}

// expect reads a delimiter.
func expect(in *json.Decoder, want json.Delim) error {
	got, err := in.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v instead of %v", got, want)
	}
	return err
}
