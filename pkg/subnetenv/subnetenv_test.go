package subnetenv

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var sample = Env{
	Network: netip.MustParsePrefix("10.42.0.0/16"),
	Subnet:  netip.MustParsePrefix("10.42.7.0/24"),
	MTU:     1450,
	IPMasq:  true,
}

const sampleText = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

func TestFormat(t *testing.T) {
	if got := string(sample.Format()); got != sampleText {
		t.Errorf("got %q, want %q", got, sampleText)
	}
}

func TestParse(t *testing.T) {
	prefixes := func(network, subnet string) (e Env) {
		if network != "" {
			e.Network = netip.MustParsePrefix(network)
		}
		if subnet != "" {
			e.Subnet = netip.MustParsePrefix(subnet)
		}
		return e
	}
	for name, c := range map[string]struct {
		in   string
		want Env
	}{
		"as written":         {sampleText, prefixes("10.42.0.0/16", "10.42.7.0/24")},
		"quotes and export":  {"export FLANNEL_SUBNET=\"10.42.7.1/24\"\r\nFLANNEL_NETWORK='10.42.0.0/16'\r\n", prefixes("10.42.0.0/16", "10.42.7.0/24")},
		"overwritten":        {"DOCKER_OPT_BIP=\"--bip=10.42.7.1/24\"\nDOCKER_OPTS=\" --bip=10.42.7.1/24\"\n", Env{}},
		"damaged subnet":     {"FLANNEL_SUBNET=10.42.7.1/99\nFLANNEL_NETWORK=10.42.0.0/16\n", prefixes("10.42.0.0/16", "")},
		"IPv6 lines":         {"FLANNEL_IPV6_SUBNET=fd42::1/64\nFLANNEL_SUBNET=fd42::1/64\n", Env{}},
		"no final line end":  {"FLANNEL_SUBNET=10.42.7.1/24", prefixes("", "10.42.7.0/24")},
		"empty":              {"", Env{}},
		"no values at all":   {"FLANNEL_SUBNET\n=\n\x00\xff", Env{}},
		"last line wins":     {"FLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_SUBNET=10.42.8.1/24\n", prefixes("", "10.42.8.0/24")},
		"address, no length": {"FLANNEL_SUBNET=10.42.7.1\n", Env{}},
	} {
		if got := Parse([]byte(c.in)); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sampleText))
	f.Add([]byte("export FLANNEL_SUBNET='10.42.7.1/24'"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := Parse(b)
		for _, p := range []netip.Prefix{e.Network, e.Subnet} {
			if p.IsValid() && (p != p.Masked() || !p.Addr().Is4()) {
				t.Errorf("%q gave %s", b, p)
			}
		}
		if e.Network.IsValid() && e.Subnet.IsValid() {
			if again := Parse(e.Format()); again.Network != e.Network || again.Subnet != e.Subnet {
				t.Errorf("%q: %+v became %+v", b, e, again)
			}
		}
	})
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	if changed, err := Write(path, sample, false); err != nil || !changed {
		t.Fatalf("first write: %v, %v", changed, err)
	}
	first, _ := os.Stat(path)
	if first.Mode().Perm() != 0o644 {
		t.Errorf("new file has mode %v", first.Mode())
	}
	if changed, err := Write(path, sample, false); err != nil || changed {
		t.Errorf("second write of the same: %v, %v", changed, err)
	}
	second, _ := os.Stat(path)
	if !os.SameFile(first, second) {
		t.Error("an equal write replaced the file")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	other := sample
	other.IPMasq = false
	if changed, err := Write(path, other, false); err != nil || !changed {
		t.Errorf("write of a change: %v, %v", changed, err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode became %v", st.Mode())
	}
	if got, _ := os.ReadFile(path); string(got) != string(other.Format()) {
		t.Errorf("file has %q", got)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left beside: %v", left)
	}
}

// TestWriteComparesValues: each row is the present content of the file, and the content after
// Write.
func TestWriteComparesValues(t *testing.T) {
	const user = "# mine\nDOCKER_OPTS=\"--bip=10.42.7.1/24\"\n"
	for name, c := range map[string]struct {
		in       string
		repaired string // in a repair; empty: it stays
		anew     string // else; empty: it stays
	}{
		"as written":             {sampleText, "", ""},
		"lines of others":        {user + sampleText + "X=1", "", ""},
		"another order, quotes":  {"export FLANNEL_IPMASQ='true'\nFLANNEL_MTU=\"1450\"\nFLANNEL_SUBNET=10.42.7.1/24\r\nFLANNEL_NETWORK=10.42.0.0/16", "", ""},
		"the last one counts":    {"FLANNEL_MTU=9000\n" + sampleText, "", ""},
		"another value":          {strings.Replace(sampleText, "1450", "1400", 1) + user, sampleText + user, sampleText},
		"another value later":    {sampleText + "FLANNEL_SUBNET=10.42.8.1/24\n", sampleText, sampleText},
		"another form of it":     {strings.Replace(sampleText, "10.42.7.1", "10.42.7.9", 1), sampleText, sampleText},
		"a variable is missing":  {strings.Replace(sampleText, "FLANNEL_IPMASQ=true\n", "", 1), sampleText, sampleText},
		"docker's options alone": {user, sampleText + user, sampleText},
		"no final line end":      {"X=1", sampleText + "X=1", sampleText},
		"empty":                  {"", sampleText, sampleText},
		"no text":                {"\x00\x01", sampleText, sampleText},
		"too long":               {strings.Repeat("X=1\n", maxFile), sampleText, sampleText},
	} {
		for repair, want := range map[bool]string{true: c.repaired, false: c.anew} {
			path := filepath.Join(t.TempDir(), "subnet.env")
			if err := os.WriteFile(path, []byte(c.in), 0o644); err != nil {
				t.Fatal(err)
			}
			changed, err := Write(path, sample, repair)
			if want == "" {
				want = c.in
			}
			if got, _ := os.ReadFile(path); err != nil || changed != (want != c.in) || string(got) != want {
				t.Errorf("%s, repair %t: changed %t, %v\n%s", name, repair, changed, err, got)
			}
		}
	}
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(filepath.Join(dir, "file", "subnet.env"), sample, false); err == nil {
		t.Error("no error where the directory is a file")
	}
	if err := os.Mkdir(filepath.Join(dir, "subnet.env"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(filepath.Join(dir, "subnet.env"), sample, false); err == nil {
		t.Error("no error where the file is a directory")
	}
	_, first := Write(filepath.Join(dir, "subnet.env"), sample, false)
	_, second := Write(filepath.Join(dir, "subnet.env"), sample, false)
	if first.Error() != second.Error() {
		t.Errorf("the same error has two texts: %v, %v", first, second)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("files left beside: %v", left)
	}
}

// TestPipeIsReplaced: reading it does not block.
func TestPipeIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("a pipe is read")
	}
	if changed, err := Write(path, sample, true); !changed || err != nil {
		t.Errorf("changed %t, %v", changed, err)
	}
	if b, err := os.ReadFile(path); string(b) != sampleText {
		t.Errorf("%q, %v", b, err)
	}
}

func TestReadMissing(t *testing.T) {
	if e, err := Read(filepath.Join(t.TempDir(), "none")); err != nil || e != (Env{}) {
		t.Errorf("got %+v, %v", e, err)
	}
}
