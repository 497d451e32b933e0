// Package etcdserver runs a real etcd in this process. All test beds use it: those of a lab in
// processes of their own, those of package etcdtest in the process of the test.
//
// Each etcd has both APIs, starts fast and does not sync its data: they do not survive a crash of
// the machine.
package etcdserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// Config returns the configuration of an etcd with one member, which keeps its data in dir and
// serves at the URLs.
func Config(dir, clientURL, peerURL string) (*embed.Config, error) {
	client, err := url.Parse(clientURL)
	if err != nil {
		return nil, fmt.Errorf("parse etcd's URL: %w", err)
	}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, fmt.Errorf("parse etcd's peer URL: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableV2, cfg.UnsafeNoFsync = true, true
	cfg.BcryptCost = 4 // the minimum
	cfg.TickMs, cfg.ElectionMs = 20, 100
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}
	return cfg, nil
}

// Start starts an etcd and waits until it serves. If the context ends before that, etcd is stopped.
func Start(ctx context.Context, cfg *embed.Config) (*embed.Etcd, error) {
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, nil
	case err = <-server.Err():
	case <-ctx.Done():
		err = errors.New("it did not serve in time")
	}
	server.Close()
	return nil, fmt.Errorf("start etcd: %w", err)
}
