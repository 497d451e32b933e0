package main

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdtest"
)

// TestEtcdCertificate makes etcd present untrusted certificates. The log must contain the reason,
// although the connections were broken by etcd's restart.
func TestEtcdCertificate(t *testing.T) {
	t.Parallel()
	ours, others := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	play := func(s *stage, name string, files *lab.TLS) {
		s.args = append(s.args, "-etcd-cafile="+files.CA, "-etcd-certfile="+files.ClientCert, "-etcd-keyfile="+files.ClientKey)
		s.join(upperConfig, s.args...)
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
						etcdtest.Replace(s.t, files.ServerCert, certFile)
						etcdtest.Replace(s.t, files.ServerKey, keyFile)
						return s.restartEtcd()
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
	}
	for _, api := range []string{"v2", "v3"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			files := secured(ours, api)
			c := newCluster(t, lab.Options{Hosts: 3, TLS: files})
			c.use(api)
			play(newStage(c), api, files)
		})
	}
}

// secured are the files of an etcd with certificates of an authority, which has issued none of that
// name yet.
func secured(by *etcdtest.Authority, name string) *lab.TLS {
	files := &lab.TLS{CA: by.File}
	files.ServerCert, files.ServerKey = by.Issue(name, ofEtcd)
	files.ClientCert, files.ClientKey = by.Issue(name + "-client")
	return files
}

// ofEtcd makes a certificate valid for a lab's etcd.
func ofEtcd(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(172, 31, 200, 1)} }

func (s *stage) restartEtcd() error {
	return errors.Join(s.Etcd.Kill(s.ctx), s.Etcd.Start(s.ctx))
}

// slowEtcd has etcd answer every other second, and then not everybody. That is not
// away: hosts follow, and one that starts meanwhile takes its time.
func (s *stage) slowEtcd() {
	const subnet, ip, mac = "10.42.89.0/24", "203.0.113.89", "0a:00:00:00:00:89"
	gone, h := s.lines(awayLine), s.Hosts[0]
	tr := s.traffic(s.containers...)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.stutter(ctx) }()
	s.put("subnets/10.42.89.0-24", phantomValue(ip, mac))
	start := time.Now()
	for _, h := range s.Hosts {
		s.holds(h, 10*time.Second, subnet, ip, mac)
	}
	followed, share := time.Since(start), s.idle(4*time.Second)
	if now := s.lines(awayLine); share > 0.01 || !slices.Equal(now, gone) {
		s.t.Errorf("a daemon takes %.2f %% of a CPU; that etcd is away was said %v times, and is now %v times", share*100, gone, now)
	}
	s.must(h.Flanneld().Kill(s.ctx))
	p := s.start(h, s.args...)
	s.saysTimes(h.Flanneld(), 0, awayLine)
	cancel()
	s.must(<-ended)
	s.del("subnets/10.42.89.0-24")
	s.follows()
	s.lossless(tr...)
	s.t.Logf("followed after %v, CPU %.3f %%, ready after %v", followed.Round(time.Millisecond), share*100, p.ReadyAfter().Round(time.Millisecond))
}

// stutter stops etcd for most of the time, until ctx ends.
func (s *stage) stutter(ctx context.Context) error {
	const stopped, running = 2 * time.Second, 5 * time.Millisecond
	turn := time.NewTimer(0)
	defer turn.Stop()
	for runs := true; ; runs = !runs {
		select {
		case <-ctx.Done():
			return s.Etcd.Resume()
		case <-turn.C:
		}
		act, until := s.Etcd.Pause, stopped
		if !runs {
			act, until = s.Etcd.Resume, running
		}
		if err := act(); err != nil {
			return err
		}
		turn.Reset(until)
	}
}
