package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

// conn is a nfnetlink socket.
type conn struct{ *netlink.Conn }

// message is a request to nftables.
type message struct {
	kind   uint16 // unix.NFT_MSG_*
	flags  uint16
	family Family
	body   netlink.Attrs
}

// create are the flags of a message that fails if its object exists.
const create = unix.NLM_F_CREATE | unix.NLM_F_EXCL

// write appends the message, with its struct nfgenmsg.
func (m message) write(r *netlink.Requests) {
	r.Begin(unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, m.flags)
	r.Put8(uint8(m.family), unix.NFNETLINK_V0, 0, 0)
	r.Attrs(m.body)
}

// genSize is the size of struct nfgenmsg, which begins with the family.
const genSize = 4

// get sends a request that is answered by one message.
func (c *conn) get(m message) (map[uint16]netlink.Value, error) {
	var r netlink.Requests
	m.write(&r)
	b, err := c.Get(&r)
	return netlink.After(b, genSize).Map(), err
}

// dump lists the objects of some families. The list of each family is consistent. what names them
// in errors.
func (c *conn) dump(
	what string, kind uint16, body netlink.Attrs, each func(Family, map[uint16]netlink.Value), families ...Family,
) error {
	for _, f := range families {
		var r netlink.Requests
		message{kind: kind, family: f, body: body}.write(&r)
		whole, err := c.List(&r, func(b []byte) bool {
			if len(b) > 0 && Family(b[0]) == f { // some kernels ignore the family of the request
				each(f, netlink.After(b, genSize).Map())
			}
			return true
		})
		if errors.Is(err, unix.ENOENT) || err == nil && !whole {
			err = errChanged
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", what, err)
		}
	}
	return nil
}

// generation returns the generation of the ruleset, which every transaction of any program
// increments.
func (c *conn) generation() (uint32, error) {
	a, err := c.get(message{kind: unix.NFT_MSG_GETGEN})
	if err != nil {
		return 0, fmt.Errorf("read generation: %w", err)
	}
	return a[unix.NFTA_GEN_ID].Uint32BE(), nil
}

// commit applies all messages in one transaction, if the ruleset is still of the generation; 0
// means any generation. Without messages it writes nothing.
func (c *conn) commit(generation uint32, ms []message) error {
	if len(ms) == 0 {
		return nil
	}
	var r netlink.Requests
	bound := func(kind uint16) {
		r.Begin(kind, 0)
		r.Put8(unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0)
		r.Put8(unix.NFNL_SUBSYS_NFTABLES>>8, unix.NFNL_SUBSYS_NFTABLES) // in network order
	}
	bound(unix.NFNL_MSG_BATCH_BEGIN)
	if generation != 0 {
		r.Attrs(netlink.Attrs{}.Uint32BE(unix.NFNL_BATCH_GENID, generation))
	}
	for _, m := range ms {
		m.write(&r)
	}
	bound(unix.NFNL_MSG_BATCH_END)
	if err := c.Transaction(&r); err != nil {
		return fmt.Errorf("write rules: %w", c.wrapError(err, generation))
	}
	return nil
}

// wrapError wraps errChanged if a failure is due to changes by other programs. Kernels before 4.16
// do not compare generations; there an object is missing, exists already, or is in use.
func (c *conn) wrapError(err error, generation uint32) error {
	changed := errors.Is(err, unix.ERESTART)
	if pace.IsAny(err, unix.ENOENT, unix.EEXIST, unix.EBUSY) {
		now, unknown := c.generation()
		changed = unknown == nil && now != generation
	}
	if changed {
		return fmt.Errorf("%w (%w)", errChanged, err)
	}
	return err
}
