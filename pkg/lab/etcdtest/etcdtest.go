// Package etcdtest starts a real etcd in the process of a test, for that test only. It can be
// stopped and started again with the same address, and with the same data or without. It needs no
// root: its addresses are loopback ports that are reserved for it.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2auth"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdserver"
)

// Etcd is one etcd server.
type Etcd struct {
	// URL is the address for clients: http://127.0.0.1:port, or https.
	URL string

	dir    string
	front  front
	peer   string
	change []func(*embed.Config)
	server *embed.Etcd
}

// StartEtcd starts an etcd that ends with the test. change may modify its configuration at each
// start.
func StartEtcd(t testing.TB, change ...func(*embed.Config)) *Etcd {
	t.Helper()
	e := NewEtcd(t, change...)
	e.Start(t)
	return e
}

// StartSecured starts an etcd with TLS. It requires client certificates of clientCA, unless that is
// empty.
func StartSecured(t testing.TB, certFile, keyFile, clientCA string) *Etcd {
	t.Helper()
	return StartEtcd(t, func(c *embed.Config) {
		c.ListenClientUrls[0].Scheme = "https"
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = certFile, keyFile
		c.ClientTLSInfo.ClientCertAuth, c.ClientTLSInfo.TrustedCAFile = clientCA != "", clientCA
	})
}

// NewEtcd reserves the address of an etcd and does not start it.
func NewEtcd(t testing.TB, change ...func(*embed.Config)) *Etcd {
	t.Helper()
	e := &Etcd{
		dir:    filepath.Join(t.TempDir(), "data"),
		front:  front{address: freeAddress(t), server: freeAddress(t)},
		peer:   "http://" + freeAddress(t),
		change: change,
	}
	cfg := e.config(t)
	e.URL = cfg.ListenClientUrls[0].Scheme + "://" + e.front.address
	t.Cleanup(e.Stop)
	return e
}

// freeAddress reserves a port for the test: nobody else gets it, to listen or to connect from. The
// test may listen at it again and again.
func freeAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// LargeRequests makes an etcd accept very large values and transactions.
func LargeRequests(c *embed.Config) { c.MaxRequestBytes, c.MaxTxnOps = 40<<20, 20000 }

// ShortTokens makes an etcd issue tokens that expire after two seconds without use.
func ShortTokens(c *embed.Config) { c.AuthTokenTTL = 2 }

func (e *Etcd) config(t testing.TB) *embed.Config {
	t.Helper()
	cfg, err := etcdserver.Config(e.dir, "http://"+e.front.server, e.peer)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TickMs, cfg.BcryptCost = 10, 4
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{"/dev/null"}
	for _, change := range e.change {
		change(cfg)
	}
	return cfg
}

// Start starts a stopped etcd with its old data.
func (e *Etcd) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server, err := etcdserver.Start(ctx, e.config(t))
	if err != nil {
		t.Fatal(err)
	}
	e.server = server
	e.front.open(t)
}

// Stop stops the etcd. Connections of clients are closed.
func (e *Etcd) Stop() {
	e.front.close()
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
}

// Stall makes the etcd unresponsive until Stop: connections stay open, new ones are accepted, and
// no data pass in either direction.
func (e *Etcd) Stall() { e.front.stall() }

// Wipe removes the data of a stopped etcd.
func (e *Etcd) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(e.dir); err != nil {
		t.Fatal(err)
	}
}

// Password is the password after RequirePassword, and passwordHash its bcrypt hash of the least cost.
const (
	Password     = "s3cret!"
	passwordHash = "$2a$04$zKaVa9JEEMI19/t8cKws4ePYoqEco8slKCxFHs9mMvxrD1.g6p7Zu"
)

// RequirePassword makes an API require the user root and the password. Checking it takes little
// time.
func (e *Etcd) RequirePassword(t testing.TB, api string) {
	t.Helper()
	err := e.Store(t, api).RequireUser(t.Context(), Password)
	if err == nil && api == "v2" { // which has no option, and a cost of 60 ms for each request
		_, err = e.server.Server.Do(t.Context(), etcdserverpb.Request{
			Method: "PUT", Path: v2auth.StorePermsPrefix + "/users/root", Val: `{"user":"root","password":"` + passwordHash + `","roles":["root"]}`,
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// V2 returns the keys of its v2 API.
func (e *Etcd) V2(t testing.TB) *etcdkeys.V2 {
	t.Helper()
	keys, err := etcdkeys.OpenV2(etcdkeys.Access{Endpoints: []string{e.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys
}

// V3 returns the keys of its v3 API.
func (e *Etcd) V3(t testing.TB) etcdkeys.V3 {
	t.Helper()
	keys, err := etcdkeys.V3{Access: etcdkeys.Access{Endpoints: []string{e.URL}}}.Keep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Store returns the keys of an API, v2 or v3.
func (e *Etcd) Store(t testing.TB, api string) etcdkeys.Store {
	t.Helper()
	if api == "v2" {
		return e.V2(t)
	}
	return e.V3(t)
}
