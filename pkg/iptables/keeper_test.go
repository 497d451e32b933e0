package iptables

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/firewall"
)

// onPath puts commands of these names and versions on the PATH, and nothing else. Each restores
// into a file beside it.
func onPath(t *testing.T, versions map[string]string) (dir string) {
	t.Helper()
	scripts := map[string]string{}
	for name, version := range versions {
		scripts[name] = "echo '" + version + "'"
		scripts[name+"-save"] = ""
		scripts[name+"-restore"] = "while read -r line; do echo \"$line\"; done >>$0.input"
	}
	dir = fakes(t, scripts)
	t.Setenv("PATH", dir)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	return dir
}

const legacyVersion, nftVersion = "iptables v1.8.9 (legacy)", "iptables v1.8.9 (nf_tables)"

// TestKeepersFindTheirVariant: by its own name, or as the installed iptables.
func TestKeepersFindTheirVariant(t *testing.T) {
	for _, c := range []struct {
		have                      map[string]string
		installed, legacy, compat string // command, or why there is none
	}{
		{nil, "not installed", "not installed", "not installed"},
		{map[string]string{"iptables": legacyVersion}, "iptables", "iptables", "not installed"},
		{map[string]string{"iptables": nftVersion}, "iptables", "not installed", "iptables"},
		{map[string]string{"iptables": nftVersion, "iptables-legacy": legacyVersion}, "iptables", "iptables-legacy", "iptables"},
		{map[string]string{"iptables": legacyVersion, "iptables-nft": nftVersion}, "iptables", "iptables", "iptables-nft"},
		{map[string]string{"iptables-legacy": nftVersion}, "not installed", "of the other variant", "not installed"},
		{map[string]string{"iptables": "nonsense"}, "version", "not installed", "version"},
	} {
		onPath(t, c.have)
		tools := NewTools(time.Second)
		places := []firewall.Place{firewall.Legacy, firewall.Compat}
		for i, k := range []*Keeper{tools.Installed(), tools.Legacy(), tools.Compat()} {
			want := []string{c.installed, c.legacy, c.compat}[i]
			if traits := k.Traits(firewall.IPv4); traits.Version != "" || traits.Place != firewall.Nowhere {
				// Another keeper may have found the installed iptables.
				if i == 0 {
					t.Errorf("%v: known before it was looked for: %+v", c.have, traits)
				}
			}
			tables, err := k.tables(firewall.IPv4)
			if err != nil {
				if !strings.Contains(err.Error(), want) || firewall.Absent(err) != (want != "version") {
					t.Errorf("%v: keeper %d: %v, want %s", c.have, i, err, want)
				}
				if _, again := k.Sync(t.Context(), firewall.Ruleset{}); again == nil {
					t.Errorf("%v: keeper %d: Sync without commands", c.have, i)
				}
				continue
			}
			traits := k.Traits(firewall.IPv4)
			if tables.command != want || traits.Name != want || traits.Version != tables.version || i > 0 && traits.Place != places[i-1] {
				t.Errorf("%v: keeper %d: %s, %+v, want %s", c.have, i, tables.command, traits, want)
			}
		}
	}
}

// TestKeeperFollowsAnUpgrade: a command is searched again once its file was replaced.
func TestKeeperFollowsAnUpgrade(t *testing.T) {
	dir := onPath(t, map[string]string{"iptables": nftVersion})
	k := NewTools(time.Second).Installed()
	if _, err := k.Sync(t.Context(), firewall.Ruleset{}); err != nil {
		t.Fatal(err)
	}
	if place := k.Traits(firewall.IPv4).Place; place != firewall.Compat {
		t.Errorf("%v", place)
	}
	command := filepath.Join(dir, "iptables")
	if err := os.Remove(command); err != nil {
		t.Fatal(err)
	}
	if traits := k.Traits(firewall.IPv4); traits.Place != firewall.Nowhere {
		t.Errorf("removed: %+v", traits)
	}
	if err := os.WriteFile(command, []byte("#!/bin/sh\necho '"+legacyVersion+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sync(t.Context(), firewall.Ruleset{}); err != nil {
		t.Fatal(err)
	}
	if place := k.Traits(firewall.IPv4).Place; place != firewall.Legacy {
		t.Errorf("upgraded: %v", place)
	}
}

// TestOldIPTablesChooseNoRandomPorts: a rule that asks for them is written without.
func TestOldIPTablesChooseNoRandomPorts(t *testing.T) {
	for version, random := range map[string]bool{"iptables v1.6.1": false, "iptables v1.6.2": true} {
		dir := onPath(t, map[string]string{"iptables": version})
		rules := firewall.Rules(firewall.Options{Overlay: four, Masquerade: true, RandomPorts: true})
		want := firewall.Ruleset{Owner: oneDaemon(), Chains: rules}
		// Its writes have no effect, because the listing stays empty.
		if _, err := NewTools(time.Second).Installed().Sync(t.Context(), want); err == nil {
			t.Error("no error")
		}
		input, err := os.ReadFile(filepath.Join(dir, "iptables-restore.input"))
		if err != nil || !strings.Contains(string(input), "MASQUERADE") || strings.Contains(string(input), "random-fully") != random {
			t.Errorf("%s: %v: wrote\n%s", version, err, input)
		}
		if rules[0].Rules[3].Verdict != firewall.MasqueradeRandom {
			t.Error("the caller's rules were changed")
		}
	}
}

// TestWatchOfWhatIsNotThere: the nft variant is nftables' to watch; without the legacy variant its
// tables are looked at.
func TestWatchOfWhatIsNotThere(t *testing.T) {
	onPath(t, map[string]string{"iptables": nftVersion})
	tools := NewTools(time.Millisecond)
	if c, err := tools.Compat().Watch(t.Context()); c != nil || err != nil {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := tools.Legacy().Watch(t.Context()); c == nil || err != nil {
		t.Errorf("%v, %v", c, err)
	}
}

// TestSearchIsMadeOnce: a Sync waits for the search that is under way, and does not repeat it.
func TestSearchIsMadeOnce(t *testing.T) {
	dir := onPath(t, map[string]string{"iptables": nftVersion})
	script := "#!/bin/sh\necho start >>$0.starts; /bin/sleep 0.2; echo '" + nftVersion + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	tools := NewTools(time.Second)
	var both sync.WaitGroup
	both.Go(tools.Search)
	both.Go(func() {
		if _, err := tools.Installed().tables(firewall.IPv4); err != nil {
			t.Error(err)
		}
	})
	both.Wait()
	if v := tools.Installed().Traits(firewall.IPv4).Version; v == "" {
		t.Error("the version is unknown")
	}
	text, err := os.ReadFile(filepath.Join(dir, "iptables.starts"))
	if err != nil || strings.Count(string(text), "start") != 2 {
		t.Errorf("started %q, %v; want twice, once by go-iptables", text, err)
	}
}
