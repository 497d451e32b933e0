package cleanup

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/lease"
	"flanneld/pkg/subnetenv"
)

// TestNetworkIsThatOfTheFiles: without one that they name, nothing is known to be flanneld's.
func TestNetworkIsThatOfTheFiles(t *testing.T) {
	prefix := netip.MustParsePrefix
	env := subnetenv.Env{Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), MTU: 1450}
	moved := lease.Claim{Subnets: lease.SubnetsOf(prefix("10.42.8.0/24"))}
	for _, c := range []struct {
		name  string
		env   subnetenv.Env
		claim lease.Claim
		want  string // network and overlays; empty: an error
	}{
		{"a subnet file", env, lease.Claim{}, "10.42.0.0/16 [{10.42.0.0/16 10.42.7.0/24}]"},
		{"the same in the claim", env, lease.Claim{Subnets: lease.SubnetsOf(env.Subnet)}, "10.42.0.0/16 [{10.42.0.0/16 10.42.7.0/24}]"},
		{"another subnet in the claim", env, moved, "10.42.0.0/16 [{10.42.0.0/16 10.42.7.0/24} {10.42.0.0/16 10.42.8.0/24}]"},
		{"a claim alone", subnetenv.Env{}, moved, "10.42.8.0/24 [{10.42.8.0/24 10.42.8.0/24}]"},
		{"neither", subnetenv.Env{}, lease.Claim{}, ""},
		{"everything", subnetenv.Env{Network: prefix("0.0.0.0/0"), Subnet: prefix("10.42.7.0/24"), MTU: 1450}, lease.Claim{}, ""},
	} {
		path := filepath.Join(t.TempDir(), "subnet.env")
		if c.env.Network.IsValid() {
			if _, err := subnetenv.Write(path, c.env, false); err != nil {
				t.Fatal(err)
			}
		}
		if c.claim != (lease.Claim{}) {
			if _, err := subnetenv.WriteClaim(path, c.claim); err != nil {
				t.Fatal(err)
			}
		}
		var remarks bytes.Buffer
		clean := &cleanup{Options: Options{SubnetFile: path}, remarks: &remarks}
		err := clean.identify()
		got := fmt.Sprint(clean.owner.Network, " ", clean.owner.Overlays)
		if c.want == "" && err == nil || c.want != "" && (err != nil || got != c.want) || remarks.Len() > 0 {
			t.Errorf("%s: %s, %v, want %s; remarks %q", c.name, got, err, c.want, &remarks)
		}
	}
}

// TestFilesGoIfThatIsWanted, each with its command, and stay in a dry run.
func TestFilesGoIfThatIsWanted(t *testing.T) {
	for _, c := range []struct{ files, dry, gone bool }{{false, false, false}, {true, true, false}, {true, false, true}} {
		path := filepath.Join(t.TempDir(), "subnet.env")
		for _, file := range append(subnetenv.Files(path), subnetenv.SocketPath(path)) {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		clean := &cleanup{Options: Options{SubnetFile: path, Files: c.files, DryRun: c.dry}, out: &out}
		if err := clean.files(); err != nil {
			t.Error(err)
		}
		_, err := os.Stat(path)
		if gone := os.IsNotExist(err); gone != c.gone || strings.Count(out.String(), "rm ") != map[bool]int{true: 3}[c.files] {
			t.Errorf("%+v: gone %t, commands\n%s", c, gone, &out)
		}
	}
}
