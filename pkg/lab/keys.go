package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"go.etcd.io/etcd/client/v2"
)

// ErrNoKey is returned for a key that does not exist.
var ErrNoKey = errors.New("no such key")

// TLS names the PEM files of an etcd that serves TLS and asks for client certificates. The server's certificate must
// be valid for the IP address in Endpoint: the first of the underlay.
type TLS struct {
	CA                    string // of the server's and of the clients' certificates
	ServerCert, ServerKey string
	ClientCert, ClientKey string // for the lab's own access to keys
}

// An Entry is a key with its value, or a directory.
type Entry struct {
	Key, Value string
	TTL        time.Duration // what is left, in whole seconds; 0 for a key that does not expire
	Index      uint64        // modifiedIndex
	Dir        bool
}

// Client is a v2 API client that dials from inside the fabric, for what the methods of Etcd do not offer.
func (e *Etcd) Client() client.Client { return e.client }

// Put sets a key through the v2 API; ttl 0 makes it permanent.
func (e *Etcd) Put(ctx context.Context, key, value string, ttl time.Duration) error {
	if _, err := e.keys().Set(ctx, key, value, &client.SetOptions{TTL: ttl}); err != nil {
		return fmt.Errorf("put key %s: %w", key, err)
	}
	return nil
}

// Get reads a key through the v2 API; the error is ErrNoKey if there is none.
func (e *Etcd) Get(ctx context.Context, key string) (Entry, error) {
	r, err := e.keys().Get(ctx, key, nil)
	if err != nil {
		return Entry{}, fmt.Errorf("get key %s: %w", key, keyError(err))
	}
	return newEntry(r.Node), nil
}

// Delete removes a key, or a directory with all it holds; the error is ErrNoKey if there is none.
func (e *Etcd) Delete(ctx context.Context, key string) error {
	if _, err := e.keys().Delete(ctx, key, &client.DeleteOptions{Recursive: true}); err != nil {
		return fmt.Errorf("delete key %s: %w", key, keyError(err))
	}
	return nil
}

// List returns what is directly in a directory, sorted by key; nothing if the directory does not exist.
func (e *Etcd) List(ctx context.Context, dir string) ([]Entry, error) {
	r, err := e.keys().Get(ctx, dir, &client.GetOptions{Sort: true})
	if errors.Is(keyError(err), ErrNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list keys in %s: %w", dir, err)
	}
	var entries []Entry
	for _, n := range r.Node.Nodes {
		entries = append(entries, newEntry(n))
	}
	return entries, nil
}

func (e *Etcd) keys() client.KeysAPI { return client.NewKeysAPI(e.client) }

// connect makes the client, once.
func (e *Etcd) connect() error {
	if e.client != nil {
		return nil
	}
	transport := &http.Transport{DialContext: e.lab.Fabric.DialContext}
	if e.tls != nil {
		config, err := e.tls.clientConfig()
		if err != nil {
			return err
		}
		transport.TLSClientConfig = config
	}
	c, err := client.New(client.Config{
		Endpoints:               []string{e.Endpoint()},
		Transport:               transport,
		HeaderTimeoutPerRequest: 10 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("make etcd client: %w", err)
	}
	e.client, e.transport = c, transport
	return nil
}

func (e *Etcd) disconnect() {
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	}
}

func (t *TLS) clientConfig() (*tls.Config, error) {
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA %s: no certificate in it", t.CA)
	}
	cert, err := tls.LoadX509KeyPair(t.ClientCert, t.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}

func newEntry(n *client.Node) Entry {
	return Entry{Key: n.Key, Value: n.Value, TTL: n.TTLDuration(), Index: n.ModifiedIndex, Dir: n.Dir}
}

func keyError(err error) error {
	var e client.Error
	if errors.As(err, &e) && e.Code == client.ErrorCodeKeyNotFound {
		return ErrNoKey
	}
	return err
}
