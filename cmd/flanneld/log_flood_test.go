package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// messageField is the message of a line.
var messageField = regexp.MustCompile(`msg=("(?:[^"\\]|\\.)*"|\S+)`)

// TestLogOfFloods: others write nonsense to etcd as fast as they can. The log has a few lines of
// each kind, which say how many there would have been, and the one host that they are about does
// its work.
func TestLogOfFloods(t *testing.T) {
	t.Parallel()
	const mostLines = 20
	for _, f := range []struct {
		name, api string
		writes    int
		key       func(c *cluster, i int) (key, value string)
	}{
		{"one bad value after the other", "v2", 8688, func(c *cluster, i int) (string, string) {
			return "10.42.7.0-24", fmt.Sprintf(`{"PublicIP":"nonsense %d"}`, i)
		}},
		{"good and bad values of one key", "v3", 8688, func(c *cluster, i int) (string, string) {
			return "10.42.7.0-24", []string{"{", `{"PublicIP":""}`, `{"PublicIP":"x"}`, phantomValue("203.0.113.7", "zz"), phantomValue("203.0.113.7", "0e:00:00:00:00:01")}[i%5]
		}},
		{"this host's own key", "v3", 2000, func(c *cluster, i int) (string, string) {
			return strings.ReplaceAll(c.subnet(c.Hosts[0]).String(), "/", "-"), phantomValue(fmt.Sprintf("203.0.113.%d", 1+i%200), "0e:00:00:00:00:01")
		}},
		{"many keys, good and bad in turn", "v3", 8000, func(c *cluster, i int) (string, string) {
			key := fmt.Sprintf("10.42.%d.%d-29", i%2000/32, i%2000%32*8)
			if i/2000%2 == 0 {
				return key, `{"PublicIP":"nonsense"}`
			}
			return key, phantomValue(fmt.Sprintf("203.%d.113.%d", i%2000/250, 1+i%250), fmt.Sprintf("0e:00:00:00:%02x:%02x", i%2000/256, i%256))
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, lab.Options{Hosts: 1})
			h := c.Hosts[0]
			keys := c.Etcd.Store(f.api)
			c.must(keys.Put(c.ctx, c.prefix+"/config", upperConfig, 0))
			c.must(c.StartAll(c.ctx))
			before := lines(h.Flanneld())
			entries := make([]etcdkeys.Entry, f.writes)
			for i := range entries {
				entries[i].Key, entries[i].Value = f.key(c, i)
				entries[i].Key = c.prefix + "/subnets/" + entries[i].Key
			}
			begin := time.Now()
			c.must(keys.PutAll(c.ctx, entries))
			took := time.Since(begin)
			c.must(keys.Put(c.ctx, c.prefix+"/subnets/10.42.100.0-24", phantomValue("203.0.114.1", "0e:00:00:00:ff:01"), 0))
			c.holdsOne(h, "10.42.100.0/24")
			c.stop(h.Flanneld())
			kinds := map[string]int{}
			for line := range strings.Lines(h.Flanneld().Logs()) {
				if m := messageField.FindStringSubmatch(line); m != nil {
					kinds[m[1]]++
				}
			}
			for kind, n := range kinds {
				if n > mostLines {
					t.Errorf("%d lines %s", n, kind)
				}
			}
			n := lines(h.Flanneld()) - before
			if n == 0 || n > 3*mostLines {
				t.Errorf("%d lines", n)
			}
			t.Logf("%d lines about %d writes in %v: %v", n, f.writes, took.Round(time.Millisecond), kinds)
		})
	}
}

// holdsOne waits until a host has a route to a subnet.
func (c *cluster) holdsOne(h *lab.Host, subnet string) {
	c.t.Helper()
	c.within(20*time.Second, "the route to "+subnet, func() error {
		_, err := c.try(h, "ip -4 route show "+subnet+" | grep -q flannel.1")
		return err
	})
}
