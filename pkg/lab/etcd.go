package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/etcd/client/v2"
)

// Etcd is a real one-member etcd in the fabric's namespace, with its v2 and v3 APIs. It is a process of its own, so
// that it can be killed and stopped like one. Its data survive everything but Wipe.
type Etcd struct {
	lab       *Lab
	addr      netip.Addr
	transport *http.Transport
	keys      client.KeysAPI
	readers   bool // PermitReading was called

	mu      sync.Mutex // held while the process is started or ended
	process *Process
}

func newEtcd(l *Lab, addr netip.Addr) (*Etcd, error) {
	e := &Etcd{lab: l, addr: addr, transport: &http.Transport{DialContext: l.Fabric.DialContext}}
	if l.opts.TLS != nil {
		config, err := l.opts.TLS.clientConfig()
		if err != nil {
			return nil, err
		}
		e.transport.TLSClientConfig = config
	}
	c, err := client.New(client.Config{
		Endpoints:               []string{e.Endpoint()},
		Transport:               e.transport,
		HeaderTimeoutPerRequest: 10 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	e.keys = client.NewKeysAPI(c)
	return e, nil
}

// Endpoint is the URL of the client API, as in -etcd-endpoints. Only the namespaces of the lab reach it.
func (e *Etcd) Endpoint() string {
	scheme := "http"
	if e.lab.opts.TLS != nil {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s:2379", scheme, e.addr)
}

// AlsoAt has etcd answer at another address too, which hosts reach by their default gateway, until the listener is closed
// that is returned.
func (e *Etcd) AlsoAt(addr netip.Addr) (net.Listener, error) {
	err := e.lab.Fabric.configure(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen()))})
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
	go e.serve(l)
	return l, nil
}

// Start starts etcd and waits until it serves.
func (e *Etcd) Start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.start(ctx)
}

func (e *Etcd) start(ctx context.Context) error {
	if e.process != nil && !e.process.Exited() {
		return errors.New("start etcd: it is running")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the binary to run etcd with: %w", err)
	}
	log := filepath.Join(e.lab.Dir, "etcd.log")
	env, err := etcdEnv(etcdConfig{Dir: e.dataDir(), Endpoint: e.Endpoint(), TLS: e.lab.opts.TLS, Calm: e.lab.opts.EtcdCluster})
	if err != nil {
		return err
	}
	e.process, err = e.lab.startProcess(e.lab.Fabric, Command{Path: self, Env: []string{env}}, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := e.process.WaitReady(ctx); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	return nil
}

// Stop ends etcd in good order.
func (e *Etcd) Stop(ctx context.Context) error { return e.end(ctx, syscall.SIGTERM) }

// Kill ends etcd as kill -9 does.
func (e *Etcd) Kill(ctx context.Context) error { return e.end(ctx, syscall.SIGKILL) }

func (e *Etcd) end(ctx context.Context, s syscall.Signal) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.process.end(ctx, s); err != nil {
		return fmt.Errorf("end etcd: %w", err)
	}
	return nil
}

// Pause stops the process without ending it: connections stay open and nothing answers, as behind a black hole.
func (e *Etcd) Pause() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process.Pause()
}

// Resume ends a Pause.
func (e *Etcd) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process.Signal(syscall.SIGCONT)
}

// Wipe kills etcd, removes its data and starts it again, empty.
func (e *Etcd) Wipe(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.process.end(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end etcd: %w", err)
	}
	if err := os.RemoveAll(e.dataDir()); err != nil {
		return fmt.Errorf("wipe etcd: %w", err)
	}
	return e.start(ctx)
}

func (e *Etcd) dataDir() string { return filepath.Join(e.lab.Dir, "etcd") }
