package lease_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

func TestParseKey(t *testing.T) {
	for key, want := range map[string]string{
		"10.42.7.0-24":                   "10.42.7.0/24",
		"10.42.7.4-31":                   "10.42.7.4/31",
		"128.0.0.0-1":                    "128.0.0.0/1",
		"10.42.7.0-24&fd42:0:0:7::-64":   "10.42.7.0/24,fd42:0:0:7::/64",
		"10.42.7.0-24&8000::-1":          "10.42.7.0/24,8000::/1",
		"10.42.7.0-24&::2-127":           "10.42.7.0/24,::2/127",
		"":                               "",
		"10.42.7.0":                      "",
		"10.42.7.0_24":                   "",
		"10.42.7.0/24":                   "",
		"10.42.7.0-":                     "",
		"10.42.7.0-0":                    "",
		"10.42.7.0-32":                   "",
		"10.42.7.0-+24":                  "",
		"10.42.7.0-024":                  "",
		"10.42.7.1-24":                   "",
		"10.42.7-24":                     "",
		"010.42.7.0-24":                  "",
		"fd42::-64":                      "",
		"::ffff:10.42.7.0-24":            "",
		"&10.42.7.0-24":                  "",
		"&fd42::-64":                     "",
		"0.0.0.0-0&fd42::-64":            "",
		"10.42.7.0-24&":                  "",
		"10.42.7.0-24&x":                 "",
		"10.42.7.0-24&fd42::":            "",
		"10.42.7.0-24&fd42::-0":          "",
		"10.42.7.0-24&fd42::-128":        "",
		"10.42.7.0-24&fd42::1-64":        "",
		"10.42.7.0-24&fd42:0:0:0::-64":   "",
		"10.42.7.0-24&FD42::-64":         "",
		"10.42.7.0-24&fe80::%1-64":       "",
		"10.42.7.0-24&::ffff:0.0.0.0-96": "",
		"10.42.7.0-24&10.42.8.0-24":      "",
		"10.42.7.0-24&fd42::-64&":        "",
		strings.Repeat("1", 1<<20):       "",
		"10.42.7.0-" + "24" + "\x00":     "",
		"10.42.7.0-99999999999999999999": "",
	} {
		got, err := lease.ParseKey(key)
		if want == "" {
			if err == nil {
				t.Errorf("key %q gives %s", lease.Clip(key), got)
			} else if len(err.Error()) > 500 {
				t.Errorf("key %q: message of %d bytes", lease.Clip(key), len(err.Error()))
			}
			continue
		}
		if err != nil || got.String() != want || lease.Key(got) != key {
			t.Errorf("key %q gives %s, %v, want %s", key, got, err, want)
		}
	}
}

func TestFaultOfKey(t *testing.T) {
	for key, want := range map[string]string{
		"notes":                      `key is not of the form a.b.c.d-len: "notes"`,
		"10.42.7.0-24&notes":         `key is not of the form a.b.c.d-len&ipv6-len: "10.42.7.0-24&notes"`,
		"fd42::-64":                  `key has no IPv4 address: "fd42::-64"`,
		"10.42.7.0-24&10.42.8.0-24":  `key has no IPv6 address: "10.42.7.0-24&10.42.8.0-24"`,
		"10.42.7.0-32":               `prefix length of the key is not in 1..31: "10.42.7.0-32"`,
		"10.42.7.0-24&fd42::-128":    `prefix length of the key is not in 1..127: "10.42.7.0-24&fd42::-128"`,
		"10.42.7.1-24":               `key has host bits set: "10.42.7.1-24"; the subnet would be 10.42.7.0/24`,
		"10.42.7.0-24&fd42:0:0::-64": `key is not in canonical form: "10.42.7.0-24&fd42:0:0::-64"; that would be fd42::-64`,
	} {
		if _, err := lease.ParseKey(key); err == nil || err.Error() != want {
			t.Errorf("key %q: %v, want %s", key, err, want)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"10.42.7.0-24", "10.42.7.0-24&fd42:0:0:7::-64", "10.42.7.0-24&x", "10.42.7.1-24", "", "-", "&", "a-b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		s, err := lease.ParseKey(key)
		if err != nil {
			return
		}
		if p := s.V4(); !p.Addr().Is4() || p.Masked() != p || p.Bits() < 1 || p.Bits() > 31 {
			t.Fatalf("key %q gives %s", key, s)
		}
		if p := s.V6(); p.IsValid() && (!p.Addr().Is6() || p.Masked() != p || p.Bits() < 1 || p.Bits() > 127) {
			t.Fatalf("key %q gives %s", key, s)
		}
		if again := lease.Key(s); again != key {
			t.Fatalf("key %q: %s comes back as %q", key, s, again)
		}
	})
}

func TestSubnets(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:0:0:7::/64")
	sorted := []lease.Subnets{{}, lease.SubnetsOf(v6), lease.SubnetsOf(v4), lease.SubnetsOf(v4, v6), lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/25"))}
	texts := []string{"invalid Prefix", "fd42:0:0:7::/64", "10.42.7.0/24", "10.42.7.0/24,fd42:0:0:7::/64", "10.42.7.0/25"}
	for i, a := range sorted {
		if a.String() != texts[i] || a.IsValid() != (i > 0) {
			t.Errorf("%x is written %s and valid: %v", a, a, a.IsValid())
		}
		for j, b := range sorted {
			if got := a.Compare(b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("%s compared with %s is %d", a, b, got)
			}
		}
	}
}

func TestEncode(t *testing.T) {
	ip, ip6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("fd00::7")
	for _, c := range []struct {
		attrs lease.Attrs
		want  string
	}{
		{lease.Attrs{}, `{"PublicIP":"0.0.0.0","PublicIPv6":null}`},
		{lease.Attrs{PublicIP: ip}, `{"PublicIP":"198.51.100.7","PublicIPv6":null}`},
		{lease.Attrs{PublicIP: ip, BackendType: "vxlan", BackendData: `{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}`},
			`{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}`},
		{lease.Attrs{PublicIP: ip, PublicIPv6: ip6, BackendType: "vxlan", BackendData: `{"VtepMAC":"02:11:22:33:44:55"}`, BackendV6Data: `{"VtepMAC":"02:11:22:33:44:66"}`},
			`{"PublicIP":"198.51.100.7","PublicIPv6":"fd00::7","BackendType":"vxlan","BackendData":{"VtepMAC":"02:11:22:33:44:55"},"BackendV6Data":{"VtepMAC":"02:11:22:33:44:66"}}`},
		{lease.Attrs{PublicIP: ip, Leaving: true}, `{"PublicIP":"198.51.100.7","PublicIPv6":null,"Leaving":true}`},
	} {
		got, err := c.attrs.Encode()
		if err != nil || string(got) != c.want {
			t.Errorf("%+v gives %s, %v, want %s", c.attrs, got, err, c.want)
		}
	}
	if got, err := (lease.Attrs{BackendData: "{"}).Encode(); err == nil {
		t.Errorf("broken backend data gives %s", got)
	}
}

func TestDecodeAttrs(t *testing.T) {
	ip, ip6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("fd00::7")
	for _, c := range []struct {
		value string
		want  lease.Attrs
		err   string
	}{
		{value: `{"PublicIP":"198.51.100.7"}`, want: lease.Attrs{PublicIP: ip}},
		{value: "\ufeff" + `{"PublicIP":"198.51.100.7"}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"publicip":"198.51.100.7","backendTYPE":"udp"}`, want: lease.Attrs{PublicIP: ip, BackendType: "udp"}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"vxlan","BackendData": {"VtepMAC" : "02:11:22:33:44:55"},"New":[1]}`,
			want: lease.Attrs{PublicIP: ip, BackendType: "vxlan", BackendData: `{"VtepMAC":"02:11:22:33:44:55"}`}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":"fd00:0::7","BackendData":{},"backendv6data": {"a" : 1}}`,
			want: lease.Attrs{PublicIP: ip, PublicIPv6: ip6, BackendData: "{}", BackendV6Data: `{"a":1}`}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":"fe80::7%eth0"}`, want: lease.Attrs{PublicIP: ip, PublicIPv6: netip.MustParseAddr("fe80::7")}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":"198.51.100.7"}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":"::ffff:198.51.100.7"}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":"x"}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"PublicIP":"198.51.100.7","PublicIPv6":7}`, err: "not lease JSON"},
		{value: `{"PublicIP":"198.51.100.7","BackendData":null}`, want: lease.Attrs{PublicIP: ip}},
		{value: "{\"PublicIP\":\"198.51.100.7\",\"BackendData\":\t{\"a b\":\n[1, 2]}\r\n}", want: lease.Attrs{PublicIP: ip, BackendData: `{"a b":[1,2]}`}},
		{value: `{"PublicIP":"198.51.100.7","BackendData":"a b"}`, want: lease.Attrs{PublicIP: ip, BackendData: `"a b"`}},
		{value: `{"PublicIP":"198.51.100.7","Leaving":true}`, want: lease.Attrs{PublicIP: ip, Leaving: true}},
		{value: `{"PublicIP":"198.51.100.7","leaving": true }`, want: lease.Attrs{PublicIP: ip, Leaving: true}},
		{value: `{"PublicIP":"198.51.100.7","Leaving":false}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"PublicIP":"198.51.100.7","Leaving":null}`, want: lease.Attrs{PublicIP: ip}},
		{value: `{"PublicIP":"198.51.100.7","Leaving":"x"}`, err: `Leaving is neither true nor false: "x"`},
		{value: `{"PublicIP":"198.51.100.7","Leaving":1}`, err: `Leaving is neither true nor false: 1`},
		{value: `{"PublicIP":"198.51.100.7","Leaving":[true]}`, err: `Leaving is neither true nor false: [true]`},
		{value: `{"PublicIP":"198.51.100.7","Leaving":"` + strings.Repeat("x", 1000) + `"}`, err: `xxx…`},
		{value: ``, err: "not lease JSON"},
		{value: `null`, err: "PublicIP is missing"},
		{value: `[]`, err: "not lease JSON"},
		{value: `{}`, err: "PublicIP is missing"},
		{value: `{"PublicIP":null}`, err: "PublicIP is missing"},
		{value: `{"PublicIP":"fd42::1"}`, err: `PublicIP is not an IPv4 address: "fd42::1"`},
		{value: `{"PublicIP":"198.51.100"}`, err: `PublicIP is not an IPv4 address: "198.51.100"`},
		{value: `{"PublicIP":7}`, err: "not lease JSON"},
		{value: strings.Repeat(" ", lease.MaxValue+1), err: "value is longer than 16384 bytes: 16385"},
	} {
		b := []byte(c.value)
		got, err := lease.DecodeAttrs(b)
		clear(b) // it is discarded completely
		if c.err == "" {
			if err != nil || got != c.want {
				t.Errorf("%s gives %+v, %v, want %+v", c.value, got, err, c.want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s gives %+v, %v, want error %q", lease.Clip(c.value), got, err, c.err)
		}
	}
}

func FuzzDecodeAttrs(f *testing.F) {
	for _, s := range []string{
		`{"PublicIP":"198.51.100.7"}`,
		`{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}`,
		`{"PublicIP":"198.51.100.7","BackendData":{"a b" : [1, 2]},"Leaving":true}`, `{"PublicIP":"198.51.100.7","Leaving":"x"}`,
		`{"PublicIP":"198.51.100.7","PublicIPv6":"fd00::7","BackendType":"vxlan","BackendData":{},"BackendV6Data":{"VtepMAC":"02:11:22:33:44:55"}}`,
		`{"publicIP":"0.0.0.0","BackendData":"<&>\u2028"}`, `null`, `{`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		a, err := lease.DecodeAttrs(value)
		if err != nil {
			return
		}
		if !a.PublicIP.Is4() {
			t.Fatalf("%q gives public IP %s", value, a.PublicIP)
		}
		b, err := a.Encode()
		if err != nil {
			t.Fatalf("%q gives %+v: %v", value, a, err)
		}
		again, err := lease.DecodeAttrs(b)
		if err != nil {
			t.Fatalf("%q gives %+v, in JSON %s: %v", value, a, b, err)
		}
		// json.Marshal may escape characters that were unescaped in the input. A second encoding
		// must be stable.
		c, err := again.Encode()
		if err != nil || string(c) != string(b) {
			t.Fatalf("%q: %s becomes %s, %v", value, b, c, err)
		}
		if again.PublicIP != a.PublicIP || again.PublicIPv6 != a.PublicIPv6 || (again.BackendV6Data == "") != (a.BackendV6Data == "") || again.Leaving != a.Leaving || again.BackendType != a.BackendType || (again.BackendData == "") != (a.BackendData == "") {
			t.Fatalf("%q: %+v comes back as %+v", value, a, again)
		}
	})
}

func TestLease(t *testing.T) {
	l := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Attrs: lease.Attrs{BackendType: "vxlan"}}
	if !l.Reservation() {
		t.Error("a lease without an end is no reservation")
	}
	renewed := l
	renewed.Expires, renewed.Revision = time.Now(), 7
	if renewed.Reservation() || !l.SameAs(renewed) {
		t.Error("an end makes another lease")
	}
	renewed.BackendData = "{}"
	if l.SameAs(renewed) {
		t.Error("other data make the same lease")
	}
	leaving := l
	leaving.Leaving = true
	if l.SameAs(leaving) {
		t.Error("a lease that is given up is the same")
	}
}
