package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/relay"
)

// Etcd is a real etcd with one member in the fabric's namespace, with its v2 and v3 APIs. It runs
// in its own process, so that it can be killed and stopped. Its data survive everything except
// Wipe.
type Etcd struct {
	*etcdkeys.V2 // keys of the v2 API

	lab     *Lab
	addr    netip.Addr
	access  etcdkeys.Access
	readers bool // PermitReading was called

	mu      sync.Mutex // held while the process is started or ended
	process *Process
}

func newEtcd(l *Lab, addr netip.Addr) (*Etcd, error) {
	e := &Etcd{lab: l, addr: addr}
	e.access = etcdkeys.Access{Endpoints: []string{e.Endpoint()}, Dial: l.Fabric.DialContext}
	if files := l.opts.TLS; files != nil {
		config, err := etcdkeys.ClientTLS(files.CA, files.ClientCert, files.ClientKey)
		if err != nil {
			return nil, err
		}
		e.access.TLS = config
	}
	var err error
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

// RequireUser makes etcd require a user and a password in both APIs. The lab itself uses them too
// from then on. The user may do everything.
func (e *Etcd) RequireUser(ctx context.Context, name, password string) error {
	if err := errors.Join(e.V3().RequireUser(ctx, password, name), e.V2.RequireUser(ctx, password, name)); err != nil {
		return fmt.Errorf("have etcd require a user: %w", err)
	}
	return nil
}

// PermitReading makes etcd require a user in both APIs, as RequireUser does. The user may read keys
// below a prefix and write nothing. Root has the same password. A second call revokes what was
// granted since the first one.
func (e *Etcd) PermitReading(ctx context.Context, name, password, prefix string) error {
	again := e.readers
	e.readers = true
	if err := errors.Join(e.V3().PermitReading(ctx, again, name, password, prefix), e.V2.PermitReading(ctx, again, name, password, prefix)); err != nil {
		return fmt.Errorf("have etcd permit reading only: %w", err)
	}
	return nil
}

// Endpoint returns the URL of the client API, as for -etcd-endpoints. It is reachable only from the
// namespaces of the lab.
func (e *Etcd) Endpoint() string {
	scheme := "http"
	if e.lab.opts.TLS != nil {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s:2379", scheme, e.addr)
}

// ListenAt makes etcd reachable at another address too, which hosts reach by their default gateway,
// until the returned listener is closed.
func (e *Etcd) ListenAt(addr netip.Addr) (net.Listener, error) {
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
	go relay.Serve(l, e.dial)
	return l, nil
}

// dial connects to the client API.
func (e *Etcd) dial() (net.Conn, error) {
	return e.lab.Fabric.DialContext(context.Background(), "tcp", netip.AddrPortFrom(e.addr, 2379).String())
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
	env, err := etcdEnv(etcdConfig{Dir: e.dataDir(), Endpoint: e.Endpoint(), TLS: e.lab.opts.TLS, SlowElections: e.lab.opts.EtcdCluster})
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

// Stop stops etcd with SIGTERM.
func (e *Etcd) Stop(ctx context.Context) error { return e.end(ctx, syscall.SIGTERM) }

// Kill kills etcd with SIGKILL.
func (e *Etcd) Kill(ctx context.Context) error { return e.end(ctx, syscall.SIGKILL) }

func (e *Etcd) end(ctx context.Context, s syscall.Signal) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.process.end(ctx, s); err != nil {
		return fmt.Errorf("end etcd: %w", err)
	}
	return nil
}

// Pause suspends the process: connections stay open and nothing answers, as if all packets were
// dropped.
func (e *Etcd) Pause() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process.Pause()
}

// Resume resumes the process after Pause.
func (e *Etcd) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process.Signal(syscall.SIGCONT)
}

// Wipe kills etcd, removes its data and starts it again without keys.
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
