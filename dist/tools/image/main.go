// Command image packs built daemons into container images without a container engine: one OCI
// archive with an index of all architectures, and one archive for "docker load" for each
// architecture.
//
// It is not a general tool for images: there is no base image, and nothing is executed. The images
// contain the static daemon, the script for docker's options and public CA certificates, and no
// shell or iptables. The same input gives the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("image: ")
	var b build
	var epoch int64
	flag.StringVar(&b.dir, "dir", ".", "`directory` of the project; dist/flanneld-ARCH are built")
	flag.StringVar(&b.repository, "repository", "quay.io/coreos/flannel", "`name` of the image without its tag")
	flag.StringVar(&b.tag, "tag", "dev", "its `tag`")
	flag.StringVar(&b.goarm, "goarm", "7", "`version` of the 32-bit ARM architecture")
	flag.Int64Var(&epoch, "epoch", 0, "`seconds` since 1970: the time of everything in the image")
	flag.Parse()
	b.time = time.Unix(epoch, 0).UTC()
	if err := b.run(flag.Args()); err != nil {
		log.Fatal(err)
	}
}

// build is the data that the images of all architectures share.
type build struct {
	dir, repository, tag, goarm string
	time                        time.Time
}

// run writes dist/flanneld-TAG-oci.tar, and dist/flanneld-TAG-ARCH.docker for each architecture, in
// Go's notation.
func (b *build) run(arches []string) error {
	if len(arches) == 0 {
		return fmt.Errorf("no architecture given")
	}
	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range arches {
		img, err := b.image(arch)
		if err != nil {
			return err
		}
		if err := b.dockerArchive(arch, img); err != nil {
			return err
		}
		platform := b.platform(arch)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	return b.ociArchive(index)
}

func (b *build) platform(arch string) v1.Platform {
	p := v1.Platform{OS: "linux", Architecture: arch}
	if arch == "arm" {
		p.Variant = "v" + b.goarm
	}
	return p
}

// image is one layer and the command to start.
func (b *build) image(arch string) (v1.Image, error) {
	files, err := b.layer(arch)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: b.time}, CreatedBy: "flanneld " + b.tag},
	})
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	p := b.platform(arch)
	file.OS, file.Architecture, file.Variant = p.OS, p.Architecture, p.Variant
	file.Created = v1.Time{Time: b.time}
	file.Config = v1.Config{
		Entrypoint: []string{"/opt/bin/flanneld"},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "flanneld",
			"org.opencontainers.image.version":  b.tag,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	return mutate.ConfigFile(img, file)
}

// layer returns a tar of the image's files.
func (b *build) layer(arch string) ([]byte, error) {
	daemon, err := os.ReadFile(filepath.Join(b.dir, "dist", "flanneld-"+arch))
	if err != nil {
		return nil, err
	}
	script, err := os.ReadFile(filepath.Join(b.dir, "mk-docker-opts.sh"))
	if err != nil {
		return nil, err
	}
	return b.archive([]file{
		{"etc/", 0o755, nil},
		{"etc/ssl/", 0o755, nil},
		{"etc/ssl/certs/", 0o755, nil},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, certificates()},
		{"opt/", 0o755, nil},
		{"opt/bin/", 0o755, nil},
		{"opt/bin/flanneld", 0o755, daemon},
		{"opt/bin/mk-docker-opts.sh", 0o755, script},
	})
}

// file is a file in an archive, or a directory if the name ends with a slash.
type file struct {
	name string
	mode int64
	data []byte
}

// archive returns a tar of files.
func (b *build) archive(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: b.time, Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// certificates returns Mozilla's CA certificates, for an etcd with a certificate of a public CA.
// Those with constraints are left out, because a file of certificates cannot express constraints.
func certificates() []byte {
	var buf bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a Buffer does not fail
		}
	}
	return buf.Bytes()
}

// dockerArchive writes the form that every docker loads: configuration, layers, and manifest.json,
// which names them and the image. The tag without an architecture is amd64's, as in the original.
// The library's own writer is not used, because its order of the tags is random.
func (b *build) dockerArchive(arch string, img v1.Image) error {
	about := tarball.Descriptor{RepoTags: []string{b.repository + ":" + b.tag + "-" + arch}}
	if arch == "amd64" {
		about.RepoTags = append(about.RepoTags, b.repository+":"+b.tag)
	}
	for _, t := range about.RepoTags {
		if _, err := name.NewTag(t); err != nil {
			return err
		}
	}
	id, err := img.ConfigName()
	if err != nil {
		return err
	}
	about.Config = id.String()
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	files := []file{{about.Config, 0o644, config}}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		name, data, err := blob(l)
		if err != nil {
			return err
		}
		about.Layers = append(about.Layers, name)
		files = append(files, file{name, 0o644, data})
	}
	manifest, err := json.Marshal(tarball.Manifest{about})
	if err != nil {
		return err
	}
	return b.write(arch+".docker", append(files, file{"manifest.json", 0o644, manifest}))
}

// blob returns a layer's name in an archive for docker, and its bytes.
func blob(l v1.Layer) (name string, data []byte, err error) {
	digest, err := l.Digest()
	if err != nil {
		return "", nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return "", nil, err
	}
	defer r.Close()
	data, err = io.ReadAll(r)
	return digest.Hex + ".tar.gz", data, err
}

// ociArchive writes the image layout of the OCI as one file, with the blobs in the order of their
// names. The annotations are the name of the image: the first for podman and skopeo, the second for
// docker and containerd.
func (b *build) ociArchive(index v1.ImageIndex) error {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": b.tag,
		"io.containerd.image.name":          b.repository + ":" + b.tag,
	})); err != nil {
		return err
	}
	var files []file
	tree := os.DirFS(dir)
	err = fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if d.IsDir() {
			files = append(files, file{p + "/", 0o755, nil})
			return nil
		}
		data, err := fs.ReadFile(tree, p)
		files = append(files, file{p, 0o644, data})
		return err
	})
	if err != nil {
		return err
	}
	return b.write("oci.tar", files)
}

// write writes an archive and prints its name.
func (b *build) write(suffix string, files []file) error {
	data, err := b.archive(files)
	if err != nil {
		return err
	}
	name := filepath.Join("dist", "flanneld-"+b.tag+"-"+suffix)
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o644); err != nil {
		return err
	}
	_, err = fmt.Println(name)
	return err
}
