package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// calm is how long a Watch waits after a failure that it knows no reason for.
const calm = time.Second

// newGeneration is the kernel's message that a transaction is done.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// Watch signals that somebody else has changed any nftables object of the
// namespace, until ctx ends; then the channel is closed. It is subscribed when
// it returns: a Sync later misses nothing. Several changes before a read are one
// signal. Lost news count as a change. What sockets do that are ours, too, is no change by
// somebody else.
func (t *Tables) Watch(ctx context.Context, ours ...func(port uint32) bool) (<-chan struct{}, error) {
	c, err := t.dialWithin(unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		defer c.close()
		defer context.AfterFunc(ctx, c.interrupt)()
		ours := append(ours, func(port uint32) bool { return port == t.conn.port })
		c.follow(ctx, ours, func() {
			select {
			case out <- struct{}{}:
			default: // one is there that was not read yet
			}
		})
	}()
	return out, nil
}

// follow reads news until ctx ends. What our sockets did is none.
func (c *conn) follow(ctx context.Context, ours []func(port uint32) bool, changed func()) {
	for {
		b, err := c.wait()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			changed()
			if !errors.Is(err, unix.ENOBUFS) && !pause(ctx, calm) {
				return
			}
			continue
		}
		for h := range messages(b) {
			if h.kind == newGeneration && !slices.ContainsFunc(ours, func(is func(uint32) bool) bool { return is(h.port) }) {
				changed()
			}
		}
	}
}

// onlyGenerations has the kernel drop all news but the end of transactions: one
// message, where the transaction itself may have thousands. It is a classic BPF
// program (kernel documentation, "Linux Socket Filtering aka Berkeley Packet
// Filter"). Whatever passes is looked at again, so that a missing filter costs
// time only.
func onlyGenerations(fd int) {
	const typeAt = 4 // in struct nlmsghdr
	// BPF takes all numbers for network order.
	kind := uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, newGeneration)))
	p := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_H, K: typeAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: kind, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 30},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]})
}
