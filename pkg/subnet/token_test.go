package subnet_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
)

// TestFollowWhileTokensExpire: etcd's tokens are valid for a second and, unless signed, are lost
// when etcd restarts. Leases are renewed and peers followed nevertheless, and nothing is logged.
func TestFollowWhileTokensExpire(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("signed with this"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"simple": "simple", "jwt": "jwt,sign-method=HS256,ttl=1s,priv-key=" + secret} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartEtcd(t, func(c *embed.Config) { c.AuthToken, c.AuthTokenTTL = token, 1 })
			if err := etcd.V3(t).RequireUser(t.Context(), "s3cret!"); err != nil {
				t.Fatal(err)
			}
			join := func(n int) *host {
				h := newHost(t, etcd, n, apis[1])
				h.Registry = apis[1].Open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: etcdPrefix, Username: "root", Password: "s3cret!"})
				h.TTL, h.Margin = 10*time.Second, 8*time.Second
				return h
			}
			one, two, peers := join(1), join(2), join(3).Registry
			first, second := one.follow(), two.follow()
			for i := range 3 {
				// This is longer than a token is valid, without requests except renewals.
				<-time.After(1500 * time.Millisecond)
				if i == 2 {
					etcd.Stop()
					etcd.Start(t)
				}
				subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, 0, byte(i * 16)}), 28)
				one.until("a peer is made", func() bool {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					defer cancel()
					_, err := peers.Create(ctx, lease.SubnetsOf(subnet), attrsOf(them, i), time.Hour)
					return err == nil || errors.Is(err, registry.ErrConflict)
				})
				for _, h := range []*host{one, two} {
					h.until("the peer is known", func() bool {
						return h.view().Peer(lease.SubnetsOf(subnet)) != nil
					})
				}
			}
			for h, own := range map[*host]lease.Lease{one: first, two: second} {
				h.until("the lease is renewed", func() bool { return strings.Count(h.log.String(), "lease renewed") >= 2 })
				if !h.holds(own) {
					t.Errorf("%s is not held as it was", own.Subnets)
				}
				// A short outage of etcd may be logged.
				for _, word := range []string{"level=ERROR", "token", "denies"} {
					if strings.Contains(h.log.String(), word) {
						t.Errorf("%q is in the log:\n%s", word, h.log)
					}
				}
			}
		})
	}
}
