package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestPassword: etcd requires authentication. With a wrong password the daemon waits, because the
// server's may change, and it never logs the password.
func TestPassword(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	c.put("config", vxlanConfig)
	c.must(c.Etcd.V3().Put(c.ctx, c.prefix+"/config", vxlanConfig, 0))
	const password = "hush-hush"
	c.must(c.Etcd.RequireUser(c.ctx, "flannel", password))
	h := c.Hosts[0]
	for _, api := range []string{"v2", "v3", "auto"} {
		for _, f := range []struct {
			name, user, password string
			ready                bool
		}{
			{"right", "flannel", password, true},
			{"wrong password", "flannel", "hush-hash", false},
			{"wrong user", "hush", password, false},
			{"none", "", "", false},
		} {
			t.Run(api+"/"+f.name, func(t *testing.T) {
				c.t = t
				p, err := h.Run(lab.Command{
					Args: []string{"-etcd-endpoints=" + c.Etcd.Endpoint(), "-subnet-file=" + filepath.Join(c.Dir, "user.env"), "-etcd-api=" + api},
					Env:  []string{"FLANNELD_ETCD_USERNAME=" + f.user, "FLANNELD_ETCD_PASSWORD=" + f.password, "FLANNELD_V=1"},
				})
				c.must(err)
				if f.ready {
					c.must(p.WaitReady(c.ctx))
				} else {
					c.within(10*time.Second, "complaint", func() error {
						n, want := strings.Count(p.Logs(), `msg="etcd refuses`)+strings.Count(p.Logs(), `msg="etcd does not permit`), 1
						if api == "auto" {
							want = 2 // each of the APIs
						}
						if n != want || !strings.Contains(p.Logs(), "etcd at "+c.Etcd.Endpoint()) {
							return fmt.Errorf("said %d times:\n%s", n, p.Logs())
						}
						return nil
					})
				}
				if _, err := p.Stop(c.ctx); err != nil {
					t.Error(err)
				}
				for _, secret := range []string{password, "hush-hash"} {
					if strings.Contains(p.Logs(), secret) {
						t.Errorf("the password is in the log:\n%s", p.Logs())
					}
				}
			})
		}
	}
}
