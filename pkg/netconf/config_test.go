package netconf

import (
	"fmt"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		// These are configs as used in the field.
		{`{"Network":"10.42.0.0/16"}`, "10.42.0.0/16 /24 10.42.1.0 10.42.255.0 udp"},
		{`{"Network":"10.172.29.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}`, "10.172.0.0/16 /24 10.172.1.0 10.172.255.0 vxlan"},
		{`{"Network":"192.0.0.0/16","SubnetLen":22,"Backend":{"Type":"vxlan"}}`, "192.0.0.0/16 /22 192.0.4.0 192.0.252.0 vxlan"},
		{`{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.16.16.0","SubnetMax":"172.31.247.0","Backend":{"Type":"vxlan","VNI":172,"Port":8889}}`, "172.16.0.0/12 /24 172.16.16.0 172.31.247.0 vxlan"},
		// Keys and the type match case-insensitively, unknown keys are ignored, and the last
		// duplicate wins.
		{`{"NetWork":"10.1.0.0/16","what":[1],"subnetlen":25,"SUBNETLEN":26,"backend":{"TYPE":"Host-GW"}}`, "10.1.0.0/16 /26 10.1.0.64 10.1.255.192 host-gw"},
		// Defaults of SubnetLen by the size of the network.
		{`{"Network":"10.0.0.0/8"}`, "10.0.0.0/8 /24 10.0.1.0 10.255.255.0 udp"},
		{`{"Network":"10.1.0.0/22"}`, "10.1.0.0/22 /24 10.1.1.0 10.1.3.0 udp"},
		{`{"Network":"10.1.0.0/23"}`, "10.1.0.0/23 /25 10.1.0.128 10.1.1.128 udp"},
		{`{"Network":"10.1.0.0/24"}`, "10.1.0.0/24 /26 10.1.0.64 10.1.0.192 udp"},
		{`{"Network":"10.1.0.0/28"}`, "10.1.0.0/28 /30 10.1.0.4 10.1.0.12 udp"},
		// null and 0.0.0.0 are treated as absent if there is a default.
		{`{"Network":"10.1.0.0/16","SubnetLen":null,"Backend":null,"EnableIPv6":null,"SubnetMin":"0.0.0.0"}`, "10.1.0.0/16 /24 10.1.1.0 10.1.255.0 udp"},
		{`{"Network":"10.1.0.0/16","SubnetMin":"10.1.0.0","SubnetMax":"10.1.0.0","Backend":{}}`, "10.1.0.0/16 /24 10.1.0.0 10.1.0.0 "},
		// With a byte order mark.
		{"\ufeff" + `{"Network":"10.42.0.0/16"}`, "10.42.0.0/16 /24 10.42.1.0 10.42.255.0 udp"},
		{`{"Network":"255.255.0.0/16"}`, "255.255.0.0/16 /24 255.255.1.0 255.255.255.0 udp"},
	} {
		got, err := Parse([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if s := fmt.Sprintf("%s /%d %s %s %s", got.V4.Network, got.V4.SubnetLen, got.V4.Min, got.V4.Max, got.BackendType); s != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.in, s, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	for in, want := range map[string]string{
		``:                                "24h0m0s 0",
		`,"SubnetLeaseTTL":null`:          "24h0m0s 0",
		`,"SubnetLeaseTTL":60`:            "1m0s 0",
		`,"subnetleasettl":31622400`:      "8784h0m0s 0",
		`,"EnableNFTables":true`:          "24h0m0s 1",
		`,"EnableNFTables":false`:         "24h0m0s 2",
		`,"EnableNFTables":null`:          "24h0m0s 0",
		`,"SubnetLeaseTTL":59`:            `network config: SubnetLeaseTTL: 59: must be a whole number from 60 to 31622400`,
		`,"SubnetLeaseTTL":"1h"`:          `network config: SubnetLeaseTTL: "1h": must be a whole number from 60 to 31622400`,
		`,"EnableNFTables":"if possible"`: `network config: EnableNFTables: "if possible": must be true or false`,
	} {
		c, err := Parse([]byte(`{"Network":"10.1.0.0/16"` + in + `}`))
		got := fmt.Sprint(c.LeaseTTL, int(c.NFTables))
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{``, `network config: must be a JSON object, and is empty`},
		{`{"Network":"10.1.0.0/16"`, `network config: must be complete JSON, and ends too early`},
		{"\xff\xfe{\x00}\x00", `network config: must be UTF-8, not UTF-16`},
		{"\ufeff", `network config: must be a JSON object, and is empty`},
		{`nonsense`, `network config: must be JSON: line 1, column 2: invalid character 'o' in literal null (expecting 'u')`},
		{"{\r\n\"Network\": \"ü\",}", `network config: must be JSON: line 2, column 16: invalid character '}' looking for beginning of object key string`},
		{`{'Network': 1}`, `network config: must be JSON: line 1, column 2: invalid character '\'' looking for beginning of object key string`},
		{`{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, `network config: must be JSON: line 1, column 10005: invalid character '[' exceeded max depth`},
		{`[]`, `network config: must be a JSON object, not []`},
		{`null`, `network config: must be a JSON object, not null`},
		{`{"Network":"10.1.0.0/16"} {}`, `network config: must be one JSON object, without anything after it`},
		{`{}`, `network config: Network: (missing): must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":null}`, `network config: Network: null: must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":7}`, `network config: Network: 7: must be a string`},
		{`{"Network":""}`, `network config: Network: "": must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":"10.1.0.0"}`, `network config: Network: "10.1.0.0": must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":"10.1.0.0/29"}`, `network config: Network: "10.1.0.0/29": must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":"0.0.0.0/0"}`, `network config: Network: "0.0.0.0/0": must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":"fd00::/48"}`, `network config: Network: "fd00::/48": must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{`{"Network":"127.0.0.0/8"}`, `network config: Network: "127.0.0.0/8": must be a network of unicast addresses, not loopback, multicast or 0.0.0.0`},
		{`{"Network":"224.0.0.0/8"}`, `network config: Network: "224.0.0.0/8": must be a network of unicast addresses, not loopback, multicast or 0.0.0.0`},
		{`{"Network":"10.1.0.0/16","SubnetLen":"24"}`, `network config: SubnetLen: "24": must be a whole number from 18 to 30`},
		{`{"Network":"10.1.0.0/16","SubnetLen":31}`, `network config: SubnetLen: 31: must be a whole number from 18 to 30`},
		{`{"Network":"10.1.0.0/16","SubnetLen":17}`, `network config: SubnetLen: 17: must be a whole number from 18 to 30`},
		{`{"Network":"10.1.0.0/16","SubnetLen":24.5}`, `network config: SubnetLen: 24.5: must be a whole number from 18 to 30`},
		{`{"Network":"10.1.0.0/16","SubnetLen":-1}`, `network config: SubnetLen: -1: must be a whole number from 18 to 30`},
		{`{"Network":"10.1.0.0/16","SubnetMin":null}`, `network config: SubnetMin: null: must be an IPv4 address such as "10.42.16.0"`},
		{`{"Network":"10.1.0.0/16","SubnetMin":"x"}`, `network config: SubnetMin: "x": must be an IPv4 address such as "10.42.16.0"`},
		{`{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}`, `network config: SubnetMin: "10.2.0.0": must be an address inside Network 10.1.0.0/16`},
		{`{"Network":"10.1.0.0/16","SubnetMax":"10.0.255.0"}`, `network config: SubnetMax: "10.0.255.0": must be an address inside Network 10.1.0.0/16`},
		{`{"Network":"10.1.0.0/16","SubnetMin":"10.1.3.7"}`, `network config: SubnetMin: "10.1.3.7": must be the start of a /24 subnet; the nearest is 10.1.3.0`},
		{`{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.8.0"}`, `network config: SubnetMax: "10.1.8.0": must be 10.1.9.0 (SubnetMin) or above`},
		{`{"Network":"10.1.0.0/16","EnableIPv6":true}`, `network config: EnableIPv6: true: must be false: the overlay carries IPv4 only`},
		{`{"Network":"10.1.0.0/16","EnableIPv6":"yes"}`, `network config: EnableIPv6: "yes": must be true or false`},
		{`{"Network":"10.1.0.0/16","EnableIPv4":false}`, `network config: EnableIPv4: false: must be true: the overlay carries IPv4 only`},
		{`{"Network":"10.1.0.0/16","Backend":"vxlan"}`, `network config: Backend: "vxlan": must be a JSON object`},
		{`{"Network":"10.1.0.0/16","Backend":{"Type":1}}`, `network config: Backend.Type: 1: must be a string`},
		{`{"Network":"` + strings.Repeat("9", 100) + `"}`, `network config: Network: "` + strings.Repeat("9", 63) + `…: must be an IPv4 network from /1 to /28 such as "10.42.0.0/16"`},
		{strings.Repeat(" ", MaxConfig+1), `network config: must be at most 65536 bytes long, not 65537`},
	} {
		_, err := Parse([]byte(c.in))
		if err == nil || err.Error() != c.want {
			t.Errorf("%.80s:\n got %v\nwant %s", c.in, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"Network":"10.42.0.0/16","SubnetLen":24,"SubnetMin":"10.42.3.0","SubnetMax":"10.42.9.0","Backend":{"Type":"vxlan","VNI":1}}`))
	f.Add([]byte(`{"Network":"10.42.0.0/28","EnableIPv6":false}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		switch {
		case c.V4.Network != c.V4.Network.Masked(),
			c.V4.SubnetLen < c.V4.Network.Bits()+2, c.V4.SubnetLen > 30,
			!c.V4.Network.Contains(c.V4.Min), !c.V4.Network.Contains(c.V4.Max),
			c.V4.Max.Less(c.V4.Min), c.Backend == nil:
			t.Errorf("%q gave %+v", b, c)
		}
	})
}
