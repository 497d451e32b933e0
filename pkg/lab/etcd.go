package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/relay"
)

// Etcd is a real etcd in the fabric's namespace, with its v2 and v3 APIs. Its first member is there
// from the start.
type Etcd struct {
	*Member      // the first one
	*etcdkeys.V2 // keys of the v2 API

	addr   netip.Addr
	access etcdkeys.Access
}

func newEtcd(l *Lab, addr netip.Addr) (*Etcd, error) {
	scheme := "http"
	if l.opts.TLS != nil {
		scheme = "https"
	}
	config := etcdConfig{
		Dir: filepath.Join(l.Dir, "etcd"), Endpoint: fmt.Sprintf("%s://%s:2379", scheme, addr), TLS: l.opts.TLS, SlowElections: l.opts.EtcdCluster,
	}
	e := &Etcd{Member: &Member{lab: l, config: config}, addr: addr}
	e.access = etcdkeys.Access{Endpoints: []string{e.Endpoint()}, Dial: l.Fabric.DialContext}
	var err error
	if files := l.opts.TLS; files != nil {
		if e.access.TLS, err = etcdkeys.ClientTLS(files.CA, files.ClientCert, files.ClientKey); err != nil {
			return nil, err
		}
	}
	e.V2, err = etcdkeys.OpenV2(e.access)
	return e, err
}

// V3 returns the keys of the v3 API.
func (e *Etcd) V3() etcdkeys.V3 { return etcdkeys.V3{Access: e.access} }

// Store returns the keys of an API, v2 or v3.
func (e *Etcd) Store(api string) etcdkeys.Store {
	if api == "v2" {
		return e.V2
	}
	return e.V3()
}

// ListenAt makes etcd reachable at another address too, which hosts reach by their default gateway,
// until the returned listener is closed.
func (e *Etcd) ListenAt(addr netip.Addr) (net.Listener, error) {
	err := e.lab.Fabric.configure(func(h *netlink.Handle) error {
		return onLink(h, "lo", func(lo netlink.Link) error {
			return h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen()))})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("give the fabric the address %s: %w", addr, err)
	}
	l, err := e.lab.Fabric.Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, 2379).String())
	if err != nil {
		return nil, fmt.Errorf("have etcd answer at %s: %w", addr, err)
	}
	e.lab.mu.Lock()
	e.lab.listeners = append(e.lab.listeners, l)
	e.lab.mu.Unlock()
	go relay.Serve(l, e.dial)
	return l, nil
}

// dial connects to the client API.
func (e *Etcd) dial() (net.Conn, error) {
	return e.lab.Fabric.DialContext(context.Background(), "tcp", netip.AddrPortFrom(e.addr, 2379).String())
}
