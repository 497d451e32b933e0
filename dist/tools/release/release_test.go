// Package release tests a finished release: the content of the archives, as seen by those who
// unpack, install or load them.
//
// It builds nothing. "make test-dist" builds the release, runs these tests with the expected values
// in the environment, builds the release in another place and compares.
package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// dist is the directory of the release.
const dist = "../.."

// made skips the test if there is no release, and returns the value of a variable that describes
// it.
func made(t *testing.T, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		t.Skip("no release is made: make test-dist")
	}
	return value
}

// file reads a file of the release or of the source tree.
func file(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dist, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// An entry is the metadata of a file in an archive.
type entry struct {
	mode os.FileMode
	data []byte
}

// untar reads a tar, compressed or not. All files must belong to root and have the time of the
// release.
func untar(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	entries := map[string]entry{}
	for tr := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || fmt.Sprint(h.ModTime.Unix()) != made(t, "SOURCE_DATE_EPOCH") {
			t.Errorf("%s: owner %d:%d, time %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		entries[strings.TrimPrefix(h.Name, "./")] = entry{h.FileInfo().Mode(), data}
	}
}

// check compares the entries that are not directories with the expected ones: mode, and content if
// that is not nil.
func check(t *testing.T, got, want map[string]entry) {
	t.Helper()
	maps.DeleteFunc(got, func(_ string, e entry) bool { return e.mode.IsDir() })
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("contains %q\nwant %q", g, w)
	}
	for name, w := range want {
		g, ok := got[name]
		if ok && (g.mode != w.mode || w.data != nil && !bytes.Equal(g.data, w.data)) {
			t.Errorf("%s: mode %s and %d bytes, want %s and %d bytes", name, g.mode, len(g.data), w.mode, len(w.data))
		}
	}
}

func eachArch(t *testing.T, f func(t *testing.T, arch string)) {
	for _, arch := range strings.Fields(made(t, "ARCHES")) {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			f(t, arch)
		})
	}
}

func TestTarball(t *testing.T) {
	eachArch(t, func(t *testing.T, arch string) {
		name := "flannel-" + made(t, "TAG") + "-linux-" + arch + ".tar.gz"
		check(t, untar(t, bytes.NewReader(file(t, name))), map[string]entry{
			"flanneld":          {0o755, file(t, "flanneld-"+arch)},
			"mk-docker-opts.sh": {0o755, file(t, "../mk-docker-opts.sh")},
			"README.md":         {0o644, file(t, "../README.md")},
		})
	})
}

// The binary must be static, stripped, for the right architecture, and have the version.
func TestBinary(t *testing.T) {
	machines := map[string]string{
		"amd64": "EM_X86_64 ELFCLASS64 ELFDATA2LSB", "arm64": "EM_AARCH64 ELFCLASS64 ELFDATA2LSB",
		"ppc64le": "EM_PPC64 ELFCLASS64 ELFDATA2LSB", "s390x": "EM_S390 ELFCLASS64 ELFDATA2MSB",
		"arm": "EM_ARM ELFCLASS32 ELFDATA2LSB", "riscv64": "EM_RISCV ELFCLASS64 ELFDATA2LSB",
	}
	eachArch(t, func(t *testing.T, arch string) {
		f, err := elf.Open(filepath.Join(dist, "flanneld-"+arch))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := fmt.Sprint(f.Machine, " ", f.Class, " ", f.Data); got != machines[arch] {
			t.Errorf("%s, want %s", got, machines[arch])
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("not static: it has %s", p.Type)
			}
		}
		if f.Section(".symtab") != nil || f.Section(".debug_info") != nil || f.Section(".zdebug_info") != nil {
			t.Error("not stripped")
		}
		version(t, filepath.Join(dist, "flanneld-"+arch), arch)
	})
}

// version runs a daemon, with qemu if it is for another architecture.
func version(t *testing.T, binary, arch string) {
	t.Helper()
	command := []string{binary, "-version"}
	if host, err := exec.Command("go", "env", "GOHOSTARCH").Output(); err != nil {
		t.Fatal(err)
	} else if arch != strings.TrimSpace(string(host)) {
		qemu := "qemu-" + strings.NewReplacer("amd64", "x86_64", "arm64", "aarch64").Replace(arch) + "-static"
		if _, err := exec.LookPath(qemu); err != nil {
			t.Logf("not run: no %s", qemu)
			return
		}
		command = append([]string{qemu}, command...)
	}
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if got, want := string(out), made(t, "TAG")+"\n"; err != nil || got != want {
		t.Errorf("%q: %v, prints %q, want %q", command, err, got, want)
	}
}

// The SBOM has the checksum of the binary and exactly the modules that are linked in it.
func TestSBOM(t *testing.T) {
	eachArch(t, func(t *testing.T, arch string) {
		var bom cdx.BOM
		name := "flannel-" + made(t, "TAG") + "-linux-" + arch + ".cdx.json"
		if err := cdx.NewBOMDecoder(bytes.NewReader(file(t, name)), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
			t.Fatal(err)
		}
		binary := file(t, "flanneld-"+arch)
		sum := sha256.Sum256(binary)
		program := bom.Metadata.Component
		if program.Name != "flanneld" || program.Version != made(t, "TAG") || (*program.Hashes)[0].Value != hex.EncodeToString(sum[:]) {
			t.Errorf("is of %s %s, %v", program.Name, program.Version, *program.Hashes)
		}
		info, err := buildinfo.Read(bytes.NewReader(binary))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")}
		for _, m := range info.Deps {
			if m.Replace != nil { // by a directory of this repository
				continue
			}
			want = append(want, "pkg:golang/"+m.Path+"@"+m.Version)
		}
		var got []string
		for _, c := range *bom.Components {
			got = append(got, c.PackageURL)
		}
		if len(want) < 10 || !slices.Equal(got, want) {
			t.Errorf("lists %q\nwant %q", got, want)
		}
	})
}

// SHA256SUMS has every file of the release, and nothing else.
func TestSums(t *testing.T) {
	tag, version := made(t, "TAG"), made(t, "VERSION")
	listed := map[string]bool{}
	for line := range strings.Lines(string(file(t, "SHA256SUMS"))) {
		want, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sum := sha256.Sum256(file(t, name))
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s: %s, listed as %s", name, got, want)
		}
		listed[name] = true
	}
	want := map[string]bool{"flanneld-" + tag + "-oci.tar": true}
	for _, arch := range strings.Fields(made(t, "ARCHES")) {
		want["flannel-"+tag+"-linux-"+arch+".tar.gz"] = true
		want["flannel-"+tag+"-linux-"+arch+".cdx.json"] = true
		want["flanneld-"+tag+"-"+arch+".docker"] = true
		if p, ok := packages[arch]; ok {
			want["flanneld_"+version+"_"+p.deb+".deb"] = true
			want["flanneld-"+version+"-1."+p.rpm+".rpm"] = true
		}
	}
	if !maps.Equal(listed, want) {
		t.Errorf("lists %q\nwant %q", slices.Sorted(maps.Keys(listed)), slices.Sorted(maps.Keys(want)))
	}
}
