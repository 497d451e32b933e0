package nftables

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
	"flanneld/pkg/pace"
)

// retryPause is how long a Watch waits after a failure that it knows no reason for.
const retryPause = time.Second

// newGeneration is the kernel's message that a transaction is done.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// Watch signals that somebody else has changed any nftables object of the namespace, until ctx
// ends; then the channel is closed. It is subscribed when it returns: a Sync later misses nothing.
// Several changes before a read are one signal. Lost news count as a change. What our own sockets
// do is no change by somebody else.
func (t *Tables) Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := t.subscribe(netlink.RequestBuffer)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		defer c.Close()
		ours := func(port uint32) bool { return port == t.Port() || t.isOwnPort != nil && t.isOwnPort(port) }
		follow(ctx, c, ours, func() {
			select {
			case out <- struct{}{}:
			default: // one is there that was not read yet
			}
		})
	}()
	return out, nil
}

func (t *Tables) subscribe(receiveBuffer int) (*netlink.Conn, error) {
	c, err := t.ns.Dial(unix.NETLINK_NETFILTER, receiveBuffer)
	if err != nil {
		return nil, err
	}
	_ = c.SetFilter(generationFilter()) // without it everything passes
	if err := c.Join(unix.NFNLGRP_NFTABLES); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// follow reads news until ctx ends. What our sockets did is none.
func follow(ctx context.Context, c *netlink.Conn, ours func(port uint32) bool, changed func()) {
	for {
		err := c.Follow(ctx, func(datagram []byte) {
			for h := range netlink.Messages(datagram) {
				if h.Type == newGeneration && !ours(h.Pid) {
					changed()
				}
			}
		})
		if ctx.Err() != nil {
			return
		}
		changed()
		if !errors.Is(err, unix.ENOBUFS) && pace.Sleep(ctx, retryPause) != nil {
			return
		}
	}
}

// generationFilter has the kernel drop all news but the end of transactions: one message, where the
// transaction itself may have thousands. Whatever passes is looked at again, so that a missing
// filter costs time only.
func generationFilter() *netlink.Filter {
	var f netlink.Filter
	f.LoadType()
	f.Equal16(newGeneration, netlink.Pass, netlink.Drop)
	return &f
}
