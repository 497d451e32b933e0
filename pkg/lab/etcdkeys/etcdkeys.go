// Package etcdkeys reads and writes keys of an etcd without flanneld, as operators and other
// programs do, through either of its two APIs. Labs and single tests use it.
package etcdkeys

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// ErrNoKey is returned for a key that does not exist.
var ErrNoKey = errors.New("no such key")

// An Entry is a key with its value.
type Entry struct {
	Key, Value string
	TTL        time.Duration // time left, in whole seconds; 0 for a key that does not expire
}

// A Store is an etcd through one of its APIs. Each API has its own keys.
type Store interface {
	// Put sets a key; ttl 0 makes it permanent.
	Put(ctx context.Context, key, value string, ttl time.Duration) error
	// PutAll sets permanent keys one after another. Each is one event.
	PutAll(ctx context.Context, entries []Entry) error
	// Get reads a key; the error is ErrNoKey if there is none.
	Get(ctx context.Context, key string) (Entry, error)
	// List reads the keys directly below a directory. A directory that does not exist is empty.
	List(ctx context.Context, dir string) ([]Entry, error)
	// Delete removes a key and all keys below it; the error is ErrNoKey if there is none.
	Delete(ctx context.Context, key string) error
	// ForgetHistory makes etcd drop the history of its events.
	ForgetHistory(ctx context.Context) error
	// RequireUser makes etcd require a user and the password in this API. Root and the others, who
	// have the same password, may do everything.
	RequireUser(ctx context.Context, password string, others ...string) error
	// PermitReading makes etcd require a user in this API, who may read keys below a prefix and write
	// nothing. Root has the same password. With again, it revokes what was granted since the first
	// call.
	PermitReading(ctx context.Context, again bool, name, password, prefix string) error
}

// unwatchedKey is a key that nobody watches.
const unwatchedKey = "/unwatched"

// Access is the way to reach an etcd.
type Access struct {
	Endpoints          []string
	Dial               func(ctx context.Context, network, address string) (net.Conn, error) // nil: from this process
	TLS                *tls.Config                                                          // nil: none
	Username, Password string
	Timeout            time.Duration // time limit of a request to one endpoint in the v2 API, of a call in v3; 0: 10 s
}

// as returns the access for another user.
func (a Access) as(name, password string) Access {
	a.Username, a.Password = name, password
	return a
}

// ClientTLS reads the PEM files of a client. The CA or the certificate with its key may be missing.
// It returns nil if both are.
func ClientTLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	if caFile == "" && certFile == "" {
		return nil, nil
	}
	config := &tls.Config{}
	if caFile != "" {
		text, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read CA %s: no certificate in it", caFile)
		}
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
