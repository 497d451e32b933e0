package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// TestPassword: etcd requires authentication. With a wrong password the daemon waits, because the
// server's may change. However often it tries, that is one condition, which names the flags. It
// never logs the password.
func TestPassword(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{Hosts: 1})
	const password = "hush-hush"
	for _, api := range []string{"v2", "v3"} {
		c.use(api)
		c.put("config", vxlanConfig)
		c.must(c.keys.RequireUser(c.ctx, password, "flannel"))
	}
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
				p := c.launchCommand(h, lab.Command{
					Args: []string{"-etcd-api=" + api},
					Env:  []string{"FLANNELD_ETCD_USERNAME=" + f.user, "FLANNELD_ETCD_PASSWORD=" + f.password, "FLANNELD_V=1"},
				})
				if f.ready {
					c.must(p.WaitReady(c.ctx))
				} else {
					want := 1
					if api == "auto" {
						want = 2 // each of the APIs
					}
					c.within(10*time.Second, "complaint", func() error {
						tried := lines(p, "level=DEBUG", "registry denies reading")
						n := lines(p, "level=ERROR", `msg="etcd refuses`, "-etcd-username and -etcd-password") + lines(p, `msg="etcd does not permit`)
						if tried < 3*want || n != want || lines(p, "etcd at "+c.Etcd.Endpoint()) == 0 || lines(p, "is unreachable") > 0 {
							return fmt.Errorf("tried %d times, said %d times:\n%s", tried, n, p.Logs())
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
