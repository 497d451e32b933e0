package lease_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"flanneld/pkg/lease"
)

func sampleClaim() lease.Claim {
	held := lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7"), BackendType: "vxlan", BackendData: `{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}`}
	next := held
	next.PublicIP = netip.MustParseAddr("198.51.100.8")
	return lease.Claim{Store: "v3", Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Held: held, Next: next}
}

func TestClaimCovers(t *testing.T) {
	c := sampleClaim()
	c.Revision = 7
	for name, row := range map[string]struct {
		change func(l *lease.Lease)
		want   bool
	}{
		"as held":        {func(*lease.Lease) {}, true},
		"as next":        {func(l *lease.Lease) { l.Attrs = c.Next }, true},
		"being given up": {func(l *lease.Lease) { l.Leaving = true }, true},
		"as left":        {func(l *lease.Lease) { l.Revision = 7 }, true},
		"restored":       {func(l *lease.Lease) { l.Revision = 6 }, true},
		"written since":  {func(l *lease.Lease) { l.Revision = 8 }, false},
		"released since": {func(l *lease.Lease) { l.Revision, l.Leaving = 8, true }, true},
		"another subnet": {func(l *lease.Lease) { l.Subnets = lease.SubnetsOf(netip.MustParsePrefix("10.42.8.0/24")) }, false},
		"longer subnet":  {func(l *lease.Lease) { l.Subnets = lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/25")) }, false},
		"public IP":      {func(l *lease.Lease) { l.PublicIP = netip.MustParseAddr("198.51.100.9") }, false},
		"backend":        {func(l *lease.Lease) { l.BackendType = "" }, false},
		"data":           {func(l *lease.Lease) { l.BackendData = "" }, false},
	} {
		l := lease.Lease{Subnets: c.Subnets, Attrs: c.Held}
		row.change(&l)
		if c.Covers(l) != row.want {
			t.Errorf("%s: %+v is covered: %v", name, l, !row.want)
		}
	}
	// Claims of older versions and claims during a write have no revision.
	unknown := c
	unknown.Revision = 0
	if !unknown.Covers(lease.Lease{Subnets: c.Subnets, Attrs: c.Held, Revision: 1000}) {
		t.Error("a claim without a revision does not cover what it says")
	}
	if (lease.Claim{}).Covers(lease.Lease{}) {
		t.Error("no claim covers no lease")
	}
}

func TestClaimJSON(t *testing.T) {
	b, err := sampleClaim().Encode()
	const want = `{"Store":"v3","Subnet":"10.42.7.0-24",` +
		`"Held":{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}},` +
		`"Next":{"PublicIP":"198.51.100.8","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
	if c, err := lease.DecodeClaim(b); err != nil || c != sampleClaim() {
		t.Errorf("comes back as %+v, %v", c, err)
	}
	full := sampleClaim()
	full.Revision, full.Adopted = 1<<63+7, full.Next
	b, err = full.Encode()
	if c, derr := lease.DecodeClaim(b); err != nil || derr != nil || c != full {
		t.Errorf("%s comes back as %+v, %v, %v", b, c, err, derr)
	}
	for name, row := range map[string][2]string{
		"not JSON":   {"FLANNEL_SUBNET=10.42.7.1/24", "not JSON"},
		"cut":        {want[:len(want)/2], "not JSON"},
		"nothing":    {"", "not JSON"},
		"no subnet":  {strings.Replace(want, "10.42.7.0-24", "10.42.7.1-24", 1), "host bits"},
		"no Held":    {`{"Subnet":"10.42.7.0-24","Next":{"PublicIP":"198.51.100.8"}}`, "Held"},
		"no Next":    {`{"Subnet":"10.42.7.0-24","Held":{"PublicIP":"198.51.100.8"}}`, "Next"},
		"bad Former": {strings.TrimSuffix(want, "}") + `,"Former":{}}`, "Former: PublicIP is missing"},
		"revision":   {strings.TrimSuffix(want, "}") + `,"Revision":-1}`, "not JSON"},
		"no address": {strings.Replace(want, "198.51.100.8", "::1", 1), `Next: PublicIP is not an IPv4 address: "::1"`},
	} {
		if c, err := lease.DecodeClaim([]byte(row[0])); err == nil || !strings.Contains(err.Error(), row[1]) || c != (lease.Claim{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func FuzzDecodeClaim(f *testing.F) {
	b, err := sampleClaim().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := lease.DecodeClaim(b)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := lease.DecodeClaim(again) // the JSON may be escaped differently
		if err != nil {
			t.Fatalf("%q: %+v does not come back: %v", b, c, err)
		}
		if third, err := back.Encode(); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%q: %s becomes %s, %v", b, again, third, err)
		}
	})
}
