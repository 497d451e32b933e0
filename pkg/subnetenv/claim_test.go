package subnetenv

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/lease"
)

func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	if c, err := ReadClaim(path); err != nil || c != (lease.Claim{}) {
		t.Fatalf("without a file: %+v, %v", c, err)
	}
	here, there := lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7")}, lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.8")}
	subnet := netip.MustParsePrefix("10.42.7.0/24")
	c := lease.Claim{Subnets: lease.SubnetsOf(subnet), Held: here, Next: there}
	for _, c := range []lease.Claim{{Subnets: lease.SubnetsOf(subnet), Held: here, Next: here}, c} {
		for _, want := range []bool{true, false} { // the second time it is there
			if changed, err := WriteClaim(path, c); err != nil || changed != want {
				t.Fatal(changed, err)
			}
		}
		if got, err := ReadClaim(path); err != nil || got != c {
			t.Errorf("%+v came back as %+v, %v", c, got, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("the directory has %v, %v", left, err)
	}
	for content, word := range map[string]string{"": "", "{": path + ".lease", strings.Repeat(" ", 2*maxFile): "not JSON"} {
		if err := os.WriteFile(ClaimPath(path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadClaim(path)
		if got != (lease.Claim{}) || (err == nil) != (word == "") || err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("%.20q: %+v, %v", content, got, err)
		}
	}
	if _, err := ReadClaim(filepath.Join(path+".lease", "x")); err == nil {
		t.Error("a claim below a file is read without an error")
	}
	if _, err := WriteClaim(filepath.Join(path+".lease", "x"), c); err == nil {
		t.Error("a claim below a file is written without an error")
	}
}

func TestSocketPath(t *testing.T) {
	for file, want := range map[string]string{
		"/run/flannel/subnet.env":      "/run/flannel/flanneld.sock",
		"/run//flannel/./subnet.env":   "/run/flannel/flanneld.sock",
		"/run/flannel/two.env":         "/run/flannel/two.env.sock",
		"/run/other/subnet.env":        "/run/other/subnet.env.sock",
		"/run/flannel/subnet.env.sock": "/run/flannel/subnet.env.sock.sock",
	} {
		if got := SocketPath(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}
