// Package etcdtest starts a real etcd with its v2 API, in this process and
// for one test. It can be stopped and started again with the same address and
// data, or with the data gone.
//
// It is tuned for speed and forgets on a crash of the machine: for tests only.
package etcdtest

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Etcd is one etcd server.
type Etcd struct {
	// URL is where clients find it: http://127.0.0.1:port, or https.
	URL string

	dir    string
	door   door
	peer   string
	change []func(*embed.Config)
	server *embed.Etcd
}

// StartEtcd starts an etcd that ends with the test. change may alter its
// configuration, each time it is started.
func StartEtcd(t testing.TB, change ...func(*embed.Config)) *Etcd {
	t.Helper()
	e := NewEtcd(t, change...)
	e.Start(t)
	return e
}

// StartSecured starts an etcd that speaks TLS, and wants certificates of clientCA unless that is
// empty.
func StartSecured(t testing.TB, certFile, keyFile, clientCA string) *Etcd {
	t.Helper()
	return StartEtcd(t, func(c *embed.Config) {
		c.ListenClientUrls[0].Scheme = "https"
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = certFile, keyFile
		c.ClientTLSInfo.ClientCertAuth, c.ClientTLSInfo.TrustedCAFile = clientCA != "", clientCA
	})
}

// NewEtcd reserves the address of an etcd that is not started yet.
func NewEtcd(t testing.TB, change ...func(*embed.Config)) *Etcd {
	t.Helper()
	e := &Etcd{
		dir:    filepath.Join(t.TempDir(), "data"),
		door:   door{address: freeAddress(t), server: freeAddress(t)},
		peer:   "http://" + freeAddress(t),
		change: change,
	}
	cfg := e.config(t)
	e.URL = cfg.ListenClientUrls[0].Scheme + "://" + e.door.address
	t.Cleanup(e.Stop)
	return e
}

// freeAddress finds a port that nobody listens on now. That somebody else
// takes it before etcd does is possible and rare.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (e *Etcd) config(t testing.TB) *embed.Config {
	t.Helper()
	parse := func(s string) url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return *u
	}
	cfg := embed.NewConfig()
	cfg.Dir = e.dir
	cfg.ListenClientUrls = []url.URL{parse("http://" + e.door.server)}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.ListenPeerUrls = []url.URL{parse(e.peer)}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.Name + "=" + e.peer
	cfg.EnableV2 = true
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{"/dev/null"}
	for _, change := range e.change {
		change(cfg)
	}
	return cfg
}

// Start starts an etcd that was stopped, with its old data.
func (e *Etcd) Start(t testing.TB) {
	t.Helper()
	server, err := embed.StartEtcd(e.config(t))
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		server.Close()
		t.Fatal("etcd did not become ready")
	}
	e.server = server
	e.door.open(t)
}

// Stop ends the etcd; clients see their connections closed.
func (e *Etcd) Stop() {
	e.door.close()
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
}

// Stick makes the etcd a black hole: connections stay, new ones are accepted,
// and nothing goes through in either direction until Unstick or Stop.
func (e *Etcd) Stick() { e.door.stick() }

// Unstick ends what Stick began.
func (e *Etcd) Unstick() { e.door.unstick() }

// Wipe removes the data of a stopped etcd.
func (e *Etcd) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(e.dir); err != nil {
		t.Fatal(err)
	}
}
