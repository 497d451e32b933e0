package release

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packages are the architectures that have packages, in the notation of dpkg and rpm.
var packages = map[string]struct{ deb, rpm string }{
	"amd64": {"amd64", "x86_64"}, "arm64": {"arm64", "aarch64"},
	"ppc64le": {"ppc64el", "ppc64le"}, "s390x": {"s390x", "s390x"},
}

// contents returns the content of both kinds of package.
func contents(t *testing.T, arch string) map[string]entry {
	t.Helper()
	const doc = "usr/share/doc/flanneld/"
	want := map[string]entry{
		"usr/bin/flanneld":                           {0o755, file(t, "flanneld-"+arch)},
		"usr/libexec/flannel/mk-docker-opts.sh":      {0o755, file(t, "../mk-docker-opts.sh")},
		"usr/lib/systemd/system/flanneld.service":    {0o644, nil},
		"usr/share/man/man8/flanneld.8.gz":           {0o644, nil},
		doc + "README.md":                            {0o644, file(t, "../README.md")},
		doc + "examples/docker-bip/10-flannel.conf":  {0o644, file(t, "docker-bip/10-flannel.conf")},
		doc + "examples/docker-opts/10-flannel.conf": {0o644, nil},
		doc + "examples/prometheus/alerts.yaml":      {0o644, file(t, "prometheus/alerts.yaml")},
		doc + "examples/prometheus/flannel.json":     {0o644, file(t, "prometheus/flannel.json")},
	}
	samples, err := filepath.Glob(filepath.Join(dist, "config/*.json"))
	if err != nil || len(samples) == 0 {
		t.Fatal("no samples", err)
	}
	for _, s := range samples {
		want[doc+"examples/config/"+filepath.Base(s)] = entry{0o644, file(t, "config/"+filepath.Base(s))}
	}
	return want
}

// changed checks the files that differ from the source: their paths are not those of "make
// install".
func changed(t *testing.T, got map[string]entry) {
	t.Helper()
	service := string(got["usr/lib/systemd/system/flanneld.service"].data)
	if strings.Contains(service, "/usr/local") || strings.Count(service, "/usr/bin/flanneld") != 1 {
		t.Errorf("flanneld.service:\n%s", service)
	}
	if source := string(file(t, "flanneld.service")); settings(service) != strings.ReplaceAll(settings(source), "/usr/local/bin/", "/usr/bin/") {
		t.Errorf("flanneld.service is another one than in the source:\n%s", service)
	}
	dropIn := string(got["usr/share/doc/flanneld/examples/docker-opts/10-flannel.conf"].data)
	if strings.Contains(dropIn, "/usr/local") || !strings.Contains(dropIn, "ExecStartPre=/usr/libexec/flannel/mk-docker-opts.sh ") {
		t.Errorf("docker-opts/10-flannel.conf:\n%s", dropIn)
	}
	z, err := gzip.NewReader(bytes.NewReader(got["usr/share/man/man8/flanneld.8.gz"].data))
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(page, file(t, "../cmd/flanneld/flanneld.8")) {
		t.Errorf("flanneld.8.gz is not flanneld.8: %v", err)
	}
	if z.Name != "" || !z.ModTime.IsZero() {
		t.Errorf("flanneld.8.gz names %q and a time, %s", z.Name, z.ModTime)
	}
}

// settings returns a unit's lines without its comments.
func settings(unit string) string {
	lines := slices.DeleteFunc(strings.Split(unit, "\n"), func(l string) bool { return strings.HasPrefix(l, "#") })
	return strings.Join(lines, "\n")
}

// output runs a tool that must be able to read the package.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s not found: apt-get install %s", name, strings.TrimSuffix(name, "-deb"))
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, &stderr)
	}
	return string(out)
}

func eachPackage(t *testing.T, f func(t *testing.T, arch string)) {
	eachArch(t, func(t *testing.T, arch string) {
		if _, ok := packages[arch]; ok {
			f(t, arch)
		}
	})
}

func TestDeb(t *testing.T) {
	eachPackage(t, func(t *testing.T, arch string) {
		deb := filepath.Join(dist, "flanneld_"+made(t, "VERSION")+"_"+packages[arch].deb+".deb")
		fields := output(t, "dpkg-deb", "-f", deb, "Package", "Version", "Architecture", "Depends", "Breaks")
		if want := "Package: flanneld\nVersion: " + made(t, "VERSION") + "\nArchitecture: " + packages[arch].deb + "\nBreaks: systemd (<< 235)\n"; fields != want {
			t.Errorf("fields\n%s\nwant\n%s", fields, want)
		}
		control := untar(t, strings.NewReader(output(t, "dpkg-deb", "--ctrl-tarfile", deb)))
		check(t, control, map[string]entry{
			"control":   {0o644, nil},
			"md5sums":   {0o644, nil},
			"conffiles": {0o644, []byte("/etc/default/flanneld\n")},
			"postinst":  {0o755, file(t, "package/postinstall")},
			"prerm":     {0o755, file(t, "package/preremove")},
			"postrm":    {0o755, file(t, "package/postremove")},
		})
		want := contents(t, arch)
		want["etc/default/flanneld"] = entry{0o644, file(t, "default/flanneld")}
		want["usr/share/doc/flanneld/copyright"] = entry{0o644, file(t, "../LICENSE")}
		got := untar(t, strings.NewReader(output(t, "dpkg-deb", "--fsys-tarfile", deb)))
		check(t, got, want)
		changed(t, got)
	})
}

func TestRPM(t *testing.T) {
	eachPackage(t, func(t *testing.T, arch string) {
		rpm := filepath.Join(dist, "flanneld-"+made(t, "VERSION")+"-1."+packages[arch].rpm+".rpm")
		const query = "%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{OS} %{BUILDHOST} %{BUILDTIME}"
		want := "flanneld " + made(t, "VERSION") + " 1 " + packages[arch].rpm + " linux localhost " + made(t, "SOURCE_DATE_EPOCH")
		if got := output(t, "rpm", "-qp", "--qf", query, rpm); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got, want := output(t, "rpm", "-qpc", rpm), "/etc/sysconfig/flanneld\n"; got != want {
			t.Errorf("configuration files %q, want %q", got, want)
		}
		if got := output(t, "rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpm); !strings.Contains(got, "/etc/sysconfig/flanneld cn\n") {
			t.Errorf("/etc/sysconfig/flanneld is replaced by an upgrade:\n%s", got)
		}
		if got, want := output(t, "rpm", "-qp", "--conflicts", "--obsoletes", rpm), "flannel\nsystemd < 235\nflannel\n"; got != want {
			t.Errorf("conflicts and obsoletes:\n%s", got)
		}
		output(t, "rpm", "-K", "--nosignature", rpm)
		for script, tag := range map[string]string{"postinstall": "POSTIN", "preremove": "PREUN", "postremove": "POSTUN"} {
			if got := output(t, "rpm", "-qp", "--qf", "%{"+tag+"}", rpm); got != string(file(t, "package/"+script)) {
				t.Errorf("%s:\n%s", script, got)
			}
		}
		files := contents(t, arch)
		for name, e := range map[string]entry{
			"etc/sysconfig/flanneld":                                {0o644, file(t, "sysconfig/flanneld")},
			"usr/bin/flanneld-start":                                {0o755, file(t, "package/flanneld-start")},
			"usr/lib/systemd/system/flanneld.service.d/docker.conf": {0o644, file(t, "package/flanneld-docker.conf")},
			"usr/lib/systemd/system/docker.service.d/flannel.conf":  {0o644, file(t, "package/docker-flannel.conf")},
			"usr/share/doc/flanneld/LICENSE":                        {0o644, file(t, "../LICENSE")},
		} {
			files[name] = e
		}
		got := untar(t, strings.NewReader(output(t, "sh", "-c", `rpm2archive -n - <"$1"`, "sh", rpm)))
		check(t, got, files)
		changed(t, got)
	})
}
