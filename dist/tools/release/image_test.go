package release

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// platforms are the architectures in OCI's notation.
var platforms = map[string]string{
	"amd64": "linux/amd64", "arm64": "linux/arm64", "ppc64le": "linux/ppc64le",
	"s390x": "linux/s390x", "arm": "linux/arm/v7", "riscv64": "linux/riscv64",
}

// checkImage checks an image as a user sees it.
func checkImage(t *testing.T, img v1.Image, arch string) {
	t.Helper()
	if err := validate.Image(img); err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Platform().String(); got != platforms[arch] {
		t.Errorf("platform %s, want %s", got, platforms[arch])
	}
	if got := config.Config.Entrypoint; !slices.Equal(got, []string{"/opt/bin/flanneld"}) || config.Config.Cmd != nil {
		t.Errorf("entrypoint %q, command %q", got, config.Config.Cmd)
	}
	if got := fmt.Sprint(config.Created.Unix()); got != made(t, "SOURCE_DATE_EPOCH") {
		t.Errorf("created %s", got)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files := untar(t, r)
	certificates(t, files["etc/ssl/certs/ca-certificates.crt"].data)
	check(t, files, map[string]entry{
		"etc/ssl/certs/ca-certificates.crt": {0o644, nil},
		"opt/bin/flanneld":                  {0o755, file(t, "flanneld-"+arch)},
		"opt/bin/mk-docker-opts.sh":         {0o755, file(t, "../mk-docker-opts.sh")},
	})
}

// The certificates must be usable by a client.
func certificates(t *testing.T, text []byte) {
	t.Helper()
	good, now := 0, time.Now()
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Error(err)
		} else if c.IsCA && c.NotAfter.After(now) {
			good++
		}
	}
	if good < 50 {
		t.Errorf("%d CA certificates", good)
	}
}

// The OCI archive has one image with a name, which has one image for each architecture.
func TestOCIArchive(t *testing.T) {
	tag := made(t, "TAG")
	dir := t.TempDir()
	for name, e := range untar(t, bytes.NewReader(file(t, "flanneld-"+tag+"-oci.tar"))) {
		if e.mode.IsDir() {
			continue
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, e.data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].MediaType != types.OCIImageIndex {
		t.Fatalf("index.json has %v", manifest.Manifests)
	}
	names := manifest.Manifests[0].Annotations
	if names["org.opencontainers.image.ref.name"] != tag || !strings.HasSuffix(names["io.containerd.image.name"], ":"+tag) {
		t.Errorf("named %q", names)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	arches := strings.Fields(made(t, "ARCHES"))
	if len(manifest.Manifests) != len(arches) {
		t.Fatalf("%d images, want %d", len(manifest.Manifests), len(arches))
	}
	for i, arch := range arches {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			d := manifest.Manifests[i]
			if got := d.Platform.String(); got != platforms[arch] || d.MediaType != types.OCIManifestSchema1 {
				t.Errorf("%s for %s, want one for %s", d.MediaType, got, platforms[arch])
			}
			img, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, img, arch)
		})
	}
}

func TestDockerArchive(t *testing.T) {
	eachArch(t, func(t *testing.T, arch string) {
		tag := made(t, "TAG")
		archive := filepath.Join(dist, "flanneld-"+tag+"-"+arch+".docker")
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
		if err != nil || len(manifest) != 1 {
			t.Fatalf("%d images, %v", len(manifest), err)
		}
		var got []string
		for _, name := range manifest[0].RepoTags {
			got = append(got, name[strings.LastIndex(name, ":")+1:])
		}
		want := []string{tag + "-" + arch}
		if arch == "amd64" {
			want = append(want, tag)
		}
		if !slices.Equal(got, want) {
			t.Errorf("tags %q, want %q", got, want)
		}
		img, err := tarball.ImageFromPath(archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch)
	})
}
