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

// retryPause is the pause of a Watch after an unknown failure.
const retryPause = time.Second

// newGeneration is the type of the kernel's message about a finished transaction.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// Watch signals changes of any nftables object of the namespace by other programs until ctx ends;
// then the channel is closed. It is subscribed when it returns, so changes after that are not
// missed. Several changes may be one signal. Lost messages count as a change. Changes by our own
// sockets are ignored.
func (t *Tables) Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := t.subscribe(netlink.RequestBuffer)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		defer c.Close()
		t.follow(ctx, c, func() { pace.Wake(out) })
	}()
	return out, nil
}

func (t *Tables) subscribe(receiveBuffer int) (*netlink.Conn, error) {
	c, err := t.ns.Dial(unix.NETLINK_NETFILTER, receiveBuffer)
	if err != nil {
		return nil, err
	}
	_ = c.SetFilter(generationFilter()) // only an optimisation
	if err := c.Join(unix.NFNLGRP_NFTABLES); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// follow calls changed for each change by other programs until ctx ends.
func (t *Tables) follow(ctx context.Context, c *netlink.Conn, changed func()) {
	for {
		err := c.Follow(ctx, func(datagram []byte) {
			for h := range netlink.Messages(datagram) {
				if _, own := t.ownPorts.Load(h.Pid); h.Type == newGeneration && !own {
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

// generationFilter drops all messages but the end of transactions in the kernel: that is one
// message, whereas a transaction itself may have thousands. Messages are checked again after the
// filter, so a missing filter only costs time.
func generationFilter() *netlink.Filter {
	var f netlink.Filter
	f.LoadType()
	f.Equal16(newGeneration, netlink.Pass, netlink.Drop)
	return &f
}
