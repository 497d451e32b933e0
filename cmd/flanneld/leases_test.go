package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/lease"
	"flanneld/pkg/operator"
	"flanneld/pkg/subnetenv"
)

// TestLeasesList: as a table and as JSON.
func TestLeasesList(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		b.put("subnets/10.42.9.0-24", `{"PublicIP":"192.0.2.9"}`, 0)
		b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "192.0.2.7"), 2*time.Hour+30*time.Second)
		b.put("subnets/10.42.6.0-24", fmt.Sprintf(hostLease, "192.0.2.6"), 45*time.Minute)
		b.put("subnets/10.42.99.0-24", fmt.Sprintf(hostLease, "127.0.0.1"), 0) // every host has this address
		own := lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.6"), BackendType: "vxlan", BackendData: `{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}`}
		claim := lease.Claim{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.6.0/24")), Held: own}
		if _, err := subnetenv.WriteClaim(b.subnetFile, claim); err != nil {
			t.Fatal(err)
		}
		b.put("subnets/10.42.8.0-24", "nonsense\x1b", time.Hour)
		b.put("subnets/notes", "x", 0)
		out, errs, code := b.types("leases", "list")
		const want = "subnet\tpublic IP\tbackend\ttime left\thost\n10.42.6.0/24\t192.0.2.6\tvxlan\t44 min 59 s\tthis one\n10.42.7.0/24\t192.0.2.7\tvxlan\t2 h\t-\n10.42.9.0/24\t192.0.2.9\t-\treserved, does not expire\t-\n10.42.99.0/24\t127.0.0.1\tvxlan\treserved, does not expire\t-\ninvalid entry 10.42.8.0-24: "
		out = regexp.MustCompile(`44 min 5\d s|45 min`).ReplaceAllString(out, "44 min 59 s")
		if code != 0 || errs != "" || !strings.HasPrefix(out, want) || !strings.Contains(out, "invalid entry notes: key is not of the form") || strings.Contains(out, "\x1b") {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		var d operator.Leases
		out, _, code = b.types("leases", "list", "-json")
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 || d.Version != 1 || len(d.Leases) != 4 || !d.Leases[0].Own || len(d.Invalid) != 2 {
			t.Fatalf("exit code %d, %v, %s", code, err, out)
		}
		if l := d.Leases[1]; l.Own || l.Reserved || l.Remaining == nil || *l.Remaining < 7100 || *l.Remaining > 7230 || l.Expires == nil || l.Backend != "vxlan" {
			t.Errorf("%+v", l)
		}
		if l := d.Leases[2]; l.Own || !l.Reserved || l.Remaining != nil || l.Expires != nil || l.PublicIP.String() != "192.0.2.9" {
			t.Errorf("%+v", l)
		}
		b.put("config", `{"Network":"10.42.0.0/16"}`, 0)
		if out, _, _ := b.types("leases", "list"); !strings.Contains(out, "192.0.2.9\tudp\t") {
			t.Errorf("with udp: %s", out)
		}
	})
}

// TestLeasesReserve: what is written is what an operator of the original writes: a key without a
// time to live.
func TestLeasesReserve(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		if _, errs, code := b.types("leases", "reserve", "10.42.9.0/24", "-public-ip=192.0.2.9"); code != operatorRefused || !strings.Contains(errs, "no network config") {
			t.Errorf("without a config: exit code %d, %q", code, errs)
		}
		b.put("config", vxlanConfig, 0)
		held := fmt.Sprintf(hostLease, "192.0.2.7")
		b.put("subnets/10.42.7.0-24", held, time.Hour)
		b.put("subnets/10.42.20.0-23", held, time.Hour)
		b.put("subnets/10.42.30.0-24", "nonsense", 0)
		b.put("subnets/10.42.31.0-24&fd42:0:0:7::-64", fmt.Sprintf(hostLease, "192.0.2.31"), time.Hour)
		b.put("subnets/10.42.32.9-24", held, 0)
		b.put("subnets/old-10.42.33.0-024", held, 0)
		for _, c := range []struct {
			args   string
			code   int
			says   string
			key    string // and its value afterwards
			stored string
		}{
			{"10.42.9.0/24", 1, "10.42.9.0/24 is not leased; --public-ip says for which host", "10.42.9.0-24", "-"},
			{"10.42.9.0/24 --public-ip=192.0.2.9", 0, "10.42.9.0/24 for 192.0.2.9: reserved\n", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.9.0/24 -public-ip 192.0.2.9", 0, "10.42.9.0/24 for 192.0.2.9: unchanged\n", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.9.0/24 --public-ip=192.0.2.10", 1, "10.42.9.0/24 is leased by 192.0.2.9", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.7.0/24", 0, "10.42.7.0/24 for 192.0.2.7: reserved\nnote: 192.0.2.7 has a lease of 10.42.20.0/23 and keeps that", "10.42.7.0-24", held},
			{"10.42.10.0/24 --public-ip=192.0.2.9 -json", 0, `"result": "reserved"`, "10.42.10.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.21.0/24 --public-ip=192.0.2.9", 1, "10.42.21.0/24 overlaps 10.42.20.0/23, which is leased by 192.0.2.7", "10.42.21.0-24", "-"},
			{"10.42.30.0/24 --public-ip=192.0.2.9", 1, "invalid entry", "10.42.30.0-24", "nonsense"},
			{"10.42.31.0/24 --public-ip=192.0.2.31", 1, "leased by 192.0.2.31, with another key: 10.42.31.0-24&fd42:0:0:7::-64", "10.42.31.0-24", "-"},
			{"10.42.32.0/24 --public-ip=192.0.2.9", 1, "the key 10.42.32.9-24 is not one of flanneld's, and some versions of flannel read it as a lease of 10.42.32.0/24", "10.42.32.0-24", "-"},
			{"10.42.33.0/24 --public-ip=192.0.2.9", 1, "the key old-10.42.33.0-024 is not", "10.42.33.0-24", "-"},
			{"10.42.11.0/25 --public-ip=192.0.2.9", 1, "must be a subnet of length 24 from 10.42.1.0 to 10.42.255.0", "10.42.11.0-25", "-"},
			{"10.43.11.0/24 --public-ip=192.0.2.9", 1, "must be a subnet of length 24", "10.43.11.0-24", "-"},
			{"10.42.12.0/24 --public-ip=127.0.0.1", 1, "127.0.0.1: must be the address of a host", "10.42.12.0-24", "-"},
			{"10.42.12.0/24 --public-ip=224.0.0.9", 1, "224.0.0.9: must be the address of a host", "10.42.12.0-24", "-"},
			{"10.42.12.0/24 --public-ip=10.42.7.5", 1, "10.42.7.5 is in the subnet 10.42.7.0/24, which is leased by 192.0.2.7", "10.42.12.0-24", "-"},
			{"10.42.12.0/24 --public-ip=10.42.12.1", 1, "must not be in the subnet", "10.42.12.0-24", "-"},
		} {
			out, errs, code := b.types(append([]string{"leases", "reserve"}, strings.Fields(c.args)...)...)
			if e := b.stored("subnets/" + c.key); code != c.code || !strings.Contains(out+errs, c.says) || e.Value != c.stored || e.TTL != 0 {
				t.Errorf("%s: exit code %d, %s%s, stored %+v; want %d, %q, %q", c.args, code, out, errs, e, c.code, c.says, c.stored)
			}
		}
	})
}

// TestLeasesRelease: what remains for a moment is a lease that any version of the original can read,
// and then nothing.
func TestLeasesRelease(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to send pings")
	}
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "127.0.0.2"), time.Hour)  // answers
		b.put("subnets/10.42.8.0-24", fmt.Sprintf(hostLease, "192.0.2.8"), time.Hour)  // does not
		b.put("subnets/10.42.9.0-24", `{"PublicIP":"0.0.0.0"}`, 0)                     // is nobody
		b.put("subnets/10.42.10.0-24", fmt.Sprintf(hostLease, "127.0.0.3"), time.Hour) // answers
		b.put("subnets/10.42.11.0-24", "nonsense", 0)
		for _, c := range []struct {
			args string
			code int
			says string
			key  string
			gone bool
		}{
			{"10.42.7.0/24", 1, "127.0.0.2 answers ICMP, and a flanneld that runs there would restore its lease; stop it and use --yes", "10.42.7.0-24", false},
			{"10.42.7.0/24 --yes", 0, "10.42.7.0/24 of 127.0.0.2: released\n", "10.42.7.0-24", true},
			{"10.42.8.0/24", 0, "10.42.8.0/24 of 192.0.2.8: released\n", "10.42.8.0-24", true},
			{"10.42.9.0/24", 0, "10.42.9.0/24 of 0.0.0.0: released\n", "10.42.9.0-24", true},
			{"-yes -json 10.42.10.0/24", 0, `"result": "released"`, "10.42.10.0-24", true},
			{"10.42.11.0/24", 1, "has an invalid entry", "10.42.11.0-24", false},
			{"10.42.11.0/24 -yes", 0, "10.42.11.0/24: released\n", "10.42.11.0-24", true},
			{"10.42.12.0/24", 1, "10.42.12.0/24 is not leased", "10.42.12.0-24", true},
		} {
			out, errs, code := b.types(append([]string{"leases", "release"}, strings.Fields(c.args)...)...)
			if code != c.code || !strings.Contains(out+errs, c.says) {
				t.Errorf("%s: exit code %d, %s%s; want %d, %q", c.args, code, out, errs, c.code, c.says)
			}
			e := b.stored("subnets/" + c.key)
			if !c.gone {
				if e.Value == "-" {
					t.Errorf("%s: it is gone", c.args)
				}
				continue
			}
			if e.Value != "-" && (!readByOriginals(c.key, e.Value) || e.TTL > time.Minute || e.TTL == 0) {
				t.Errorf("%s: what remains is %+v", c.args, e)
			}
			wait.True(t, c.args+": the key is gone", func() bool { return b.stored("subnets/"+c.key).Value == "-" })
		}
	})
}

// TestLeasesOfLivingHosts: that of another host, or of this one while flanneld runs, is not released.
// A lease that is reserved while its host runs stays as it is, and one that is released by mistake is
// restored.
func TestLeasesOfLivingHosts(t *testing.T) {
	eachAPI(t, lab.Options{Hosts: 2}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		p := c.start(c.Hosts[0])
		c.start(c.Hosts[1])
		operate := func(want int, says, command string) {
			t.Helper()
			args := append(strings.Fields(command), "-etcd-endpoints="+c.Etcd.Endpoint(), "-subnet-file="+c.Hosts[0].SubnetFile)
			if said, code := c.runs(c.Hosts[0], nil, args...); code != want || !strings.Contains(said, says) {
				t.Errorf("%s: exit code %d, want %d and %q:\n%s", command, code, want, says, said)
			}
		}
		own, other := c.subnet(c.Hosts[0]).String(), c.subnet(c.Hosts[1]).String()
		operate(0, "\tthis one\n", "leases list")
		operate(operatorRefused, other+": "+c.Hosts[1].Addr.String()+" answers ", "leases release "+other)
		operate(operatorRefused, "it is the lease of this host, where flanneld runs", "leases release "+own)
		operate(0, own+" for "+c.Hosts[0].Addr.String()+": reserved", "leases reserve "+own)
		c.says(p, "lease was reserved for this host")
		_, was := c.lease(c.Hosts[0])
		operate(0, "unchanged", "leases reserve "+own)
		operate(0, "released", "leases release --yes "+own)
		c.says(p, "own lease was ") // overwritten (v2), deleted (v3)
		if _, is := c.lease(c.Hosts[0]); was.TTL != 0 || is.Value != was.Value {
			t.Errorf("there was %+v, and there is %+v", was, is)
		}
		c.connect()
		c.stop(p)
		operate(0, "released", "leases release "+own)
	})
}

// readByOriginals reports whether every version of the original reads a key and its value as a lease.
func readByOriginals(key, value string) bool {
	var l struct {
		PublicIP    string
		PublicIPv6  *string
		BackendType string
		BackendData json.RawMessage
	}
	err := json.Unmarshal([]byte(value), &l)
	return err == nil && regexp.MustCompile(`^(\d+\.){3}\d+-\d+$`).MatchString(key) && net.ParseIP(l.PublicIP).To4() != nil
}

// TestReleaseOfTwoKeys: a subnet whose lease has two keys is released whole, so that no version of
// the original removes the host when one ends, and keeps the other one.
func TestReleaseOfTwoKeys(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		keys := []string{"subnets/10.42.7.0-24", "subnets/10.42.7.0-24&fd42:0:0:7::-64", "subnets/10.42.7.0-24&fd42:0:0:8::-64"}
		for _, key := range keys[:2] {
			b.put(key, fmt.Sprintf(hostLease, "192.0.2.7"), time.Hour)
		}
		b.put(keys[2], "nonsense", time.Hour)
		if out, errs, code := b.types("leases", "release", "10.42.7.0/24"); code != operatorRefused || !strings.Contains(errs, "10.42.7.0/24,fd42:0:0:8::/64 has an invalid entry") {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		if out, errs, code := b.types("leases", "release", "--yes", "10.42.7.0/24"); code != 0 {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		for _, key := range keys {
			wait.True(t, key+" is gone", func() bool { return b.stored(key).Value == "-" })
		}
	})
}

// TestOriginalsFollowAReservation: the events of a reservation and its release in the v2 API are
// those that every version of the original understands, with values that it can read.
func TestOriginalsFollowAReservation(t *testing.T) {
	b := newOperatorBed(t, "v2", etcdtest.StartEtcd(t))
	b.put("config", vxlanConfig, 0)
	b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "192.0.2.7"), time.Hour)
	from := b.index()
	for _, args := range []string{
		"leases reserve 10.42.7.0/24", "leases reserve 10.42.9.0/24 --public-ip=192.0.2.9", "leases release 10.42.7.0/24", "leases release 10.42.9.0/24",
	} {
		if out, errs, code := b.types(strings.Fields(args)...); code != 0 {
			t.Errorf("%s: exit code %d, %s%s", args, code, out, errs)
		}
	}
	var seen []string
	for range 6 {
		e := b.event(from)
		from = e.Node.ModifiedIndex + 1
		key := filepath.Base(e.Node.Key)
		if e.Action != "expire" && !readByOriginals(key, e.Node.Value) {
			t.Errorf("%s of %s: %q", e.Action, key, e.Node.Value)
		}
		seen = append(seen, e.Action+" "+key)
	}
	slices.Sort(seen)
	want := []string{
		"compareAndSwap 10.42.7.0-24", "compareAndSwap 10.42.7.0-24", "compareAndSwap 10.42.9.0-24",
		"create 10.42.9.0-24", "expire 10.42.7.0-24", "expire 10.42.9.0-24",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("events %q, want %q", seen, want)
	}
}

// v2Event is an event of the v2 API.
type v2Event struct {
	Action string
	Node   struct {
		Key, Value    string
		ModifiedIndex uint64
	}
}

// event returns the first event of a lease at an index or after it, which it waits for.
func (b *operatorBed) event(index uint64) (e v2Event) {
	b.Helper()
	_, body := b.get(fmt.Sprintf("/subnets?recursive=true&wait=true&waitIndex=%d", index))
	if err := json.Unmarshal(body, &e); err != nil {
		b.Fatal(err)
	}
	return e
}

// index returns the index after the last event.
func (b *operatorBed) index() uint64 {
	b.Helper()
	header, _ := b.get("/config")
	n, err := strconv.ParseUint(header.Get("X-Etcd-Index"), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n + 1
}

// get asks the v2 API for a key.
func (b *operatorBed) get(key string) (http.Header, []byte) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.server.URL+"/v2/keys"+defaultPrefix+key, nil)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	return resp.Header, body
}
