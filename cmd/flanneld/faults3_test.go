package main

import (
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/registry/etcdtest"
)

// TestEtcdCertificate has etcd show certificates that are not to be trusted. The
// log is to say so, though what broke the connections was etcd's restart.
func TestEtcdCertificate(t *testing.T) {
	ours, others := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	server := func(t *testing.T) string { return strings.ReplaceAll(t.Name(), "/", "-") }
	secure := func(t *testing.T) lab.Options {
		files := &lab.TLS{CA: ours.File}
		files.ServerCert, files.ServerKey = ours.Issue(server(t), ofEtcd)
		files.ClientCert, files.ClientKey = ours.Issue(server(t) + "-client")
		return lab.Options{Hosts: 3, Underlay: netip.MustParsePrefix("172.31.200.0/22"), TLS: files}
	}
	eachStore(t, secure, func(s *stage) {
		name, files := server(s.t), s.options.TLS
		s.args = append(s.args, "-etcd-cafile="+files.CA, "-etcd-certfile="+files.ClientCert, "-etcd-keyfile="+files.ClientKey)
		s.begin(upperConfig)
		for _, bad := range []struct {
			name, cause string
			by          *etcdtest.Authority
			change      func(*x509.Certificate)
		}{
			{"of another authority", "certificate signed by unknown authority", others, ofEtcd},
			{"expired", "certificate has expired", ours, func(c *x509.Certificate) {
				ofEtcd(c)
				c.NotAfter = time.Now().Add(-time.Minute)
			}},
		} {
			s.row(bad.name, func(s *stage) {
				s.endures(outage{
					begin: func() error {
						certFile, keyFile := bad.by.Issue(name, bad.change)
						return errors.Join(copyFile(files.ServerCert, certFile), copyFile(files.ServerKey, keyFile), s.restartEtcd())
					},
					end: func() error {
						ours.Issue(name, ofEtcd)
						return s.restartEtcd()
					},
					noticed: 5 * time.Second,
					cause:   []string{"172.31.200.1:2379", bad.cause},
				})
			})
		}
	})
}

func ofEtcd(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(172, 31, 200, 1)} }

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

func (s *stage) restartEtcd() error {
	return errors.Join(s.Etcd.Kill(s.ctx), s.Etcd.Start(s.ctx))
}

// TestLastSubnet: of two hosts that want the last subnet one gets it, and the
// other waits for the next, saying why and what to do.
func TestLastSubnet(t *testing.T) {
	eachStore(t, func(*testing.T) lab.Options { return lab.Options{Hosts: 4} }, func(s *stage) {
		s.set("config", `{"Network":"10.42.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}`) // subnets .4, .8 and .12
		all := s.Hosts
		s.Hosts = all[:2]
		s.must(s.StartAll(s.ctx, s.args...))
		s.addContainers()
		s.waitAllPairs()
		tr := s.traffic(s.containers...)

		contenders := all[2:]
		for _, h := range contenders {
			_, err := h.Start(s.args...)
			s.must(err)
		}
		var won, waits *lab.Host
		s.within(5*time.Second, "one has it and one waits", func() error {
			for i, h := range contenders {
				other := contenders[1-i]
				if logged(h, "msg=ready") == 1 && logged(other, "cannot lease a subnet") == 1 {
					won, waits = h, other
					return nil
				}
			}
			return errors.New("not yet")
		})
		s.must(times(waits, 1, "level=ERROR", "cannot lease a subnet", "out of subnets", "10.42.0.0/28", "3 subnets of length 30", "10.42.0.4 to 10.42.0.12", "3 leases"))
		if err := times(waits, 1, "cannot lease a subnet", "delete", "SubnetLen"); err != nil {
			s.t.Errorf("no advice: %v", err)
		}
		s.must(won.Flanneld().WaitReady(s.ctx))
		tr.end()

		// A running owner would defend its lease.
		_, err := all[0].Flanneld().Stop(s.ctx)
		s.must(err)
		key, _, err := s.ownLease(all[0])
		s.must(err)
		s.must(s.store.Delete(s.ctx, key))
		freed := time.Now()
		s.within(12*time.Second, "the subnet that became free", func() error { return times(waits, 1, "msg=ready") })
		took := time.Since(freed)
		if _, e, err := s.ownLease(waits); err != nil || e.Key != key || !strings.Contains(e.Value, `"`+waits.Addr.String()+`"`) {
			s.t.Errorf("the waiting host has %+v, %v, not %s", e, err, key)
		}
		s.must(times(waits, 1, "cannot lease a subnet"))
		s.t.Logf("%s won, %s got the next after %v", won.Name, waits.Name, took.Round(time.Millisecond))
	})
}
