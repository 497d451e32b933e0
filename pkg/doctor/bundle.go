package doctor

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/api"
	"flanneld/pkg/subnetenv"
)

const (
	// maxFile limits the size of a file in a bundle, whose end is cut off.
	maxFile = 4 << 20
	// fileLimit limits the time of collecting one file.
	fileLimit = 5 * time.Second
	// logLines is the number of lines of the log in a bundle.
	logLines = "2000"
)

// File is a file of a bundle, or the reason why it is missing.
type File struct {
	Name    string
	Content []byte
	Err     error
}

// source is how a file of a bundle is collected.
type source struct {
	name string
	read func(context.Context) ([]byte, error)
}

// Collect collects the files of a bundle for a bug report, all at the same time. One that hangs or
// fails is missing, with the reason.
func Collect(ctx context.Context, in *Inputs, version string) []File {
	sources := sources(in, version)
	files := make([]File, len(sources))
	var all sync.WaitGroup
	for i, s := range sources {
		all.Go(func() {
			files[i].Name = s.name
			files[i].Content, files[i].Err = newInput(ctx, s.name, fileLimit, s.read).Get(ctx)
		})
	}
	all.Wait()
	return files
}

// sources returns what a bundle contains besides the report.
func sources(in *Inputs, version string) []source {
	client := api.Dial(in.Options.SubnetFile)
	from := func(path string) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) { return client.Get(ctx, path) }
	}
	file := func(path string) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return readStart(path, maxFile) }
	}
	command := func(name string, words ...string) source {
		return source{name, func(ctx context.Context) ([]byte, error) { return output(ctx, words[0], words[1:]...) }}
	}
	return []source{
		{"versions.txt", func(context.Context) ([]byte, error) { return versions(version) }},
		{"settings.txt", func(context.Context) ([]byte, error) { return in.settings(), nil }},
		{"status.json", from("/status")},
		{"metrics.txt", from("/metrics")},
		{"readyz.txt", from("/readyz")},
		{"subnet.env", file(in.Options.SubnetFile)},
		{"lease.json", file(subnetenv.ClaimPath(in.Options.SubnetFile))},
		{"etcd.json", func(ctx context.Context) ([]byte, error) { return in.storeJSON(ctx) }},
		{"log.txt", func(ctx context.Context) ([]byte, error) {
			return output(ctx, "journalctl", "--unit="+unitName, "--lines="+logLines, "--no-pager", "--output=short-iso")
		}},
		command("unit.txt", "systemctl", "status", unitName, "--no-pager", "--lines=0"),
		command("links.txt", "ip", "-details", "-statistics", "link"),
		command("addresses.txt", "ip", "address"),
		command("rules.txt", "ip", "rule"),
		command("routes.txt", "ip", "-4", "route", "show", "table", "all"),
		command("nexthops.txt", "ip", "nexthop"),
		command("neighbours.txt", "ip", "-4", "neighbour"),
		command("fdb.txt", "bridge", "fdb"),
		command("nftables.txt", "nft", "list", "ruleset"),
		command("iptables.txt", "iptables-save", "-c"),
		command("iptables-legacy.txt", "iptables-legacy-save", "-c"),
		command("udp-sockets.txt", "ss", "-ulpn"),
		command("sysctls.txt", "sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_count"),
	}
}

// versions returns the versions of everything that matters.
func versions(version string) ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "flanneld %s\n%s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		fmt.Fprintf(&b, "%s %s %s\n", unix.ByteSliceToString(uts.Sysname[:]), unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Version[:]))
	}
	if release, err := readStart("/etc/os-release", maxVersions); err == nil {
		b.Write(release)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			fmt.Fprintf(&b, "%s %s\n", m.Path, m.Version)
		}
	}
	return []byte(b.String()), nil
}

// maxVersions limits the length of a file about the system.
const maxVersions = 16 << 10

// settings returns the settings that the doctor has used.
func (in *Inputs) settings() []byte {
	o := in.Options
	return fmt.Appendf(nil, "source: %s\nsubnet-file: %s\netcd-endpoints: %s\netcd-discovery-srv: %s\netcd-api: %s\netcd-prefix: %s\netcd-cafile: %s\netcd-certfile: %s\netcd-keyfile: %s\netcd-username: %s\niface: %s\niface-regex: %s\niface-can-reach: %s\npublic-ip: %s\n",
		o.Source, o.SubnetFile, and(o.Etcd.Endpoints), o.Domain, o.API, o.Etcd.Prefix, o.Etcd.CAFile, o.Etcd.CertFile, o.Etcd.KeyFile, o.Etcd.Username,
		and(o.Uplink.Ifaces), and(o.Uplink.Regexes), o.Uplink.CanReach, o.Uplink.PublicIP)
}

// storeJSON returns the network config and the leases, as etcd has them.
func (in *Inputs) storeJSON(ctx context.Context) ([]byte, error) {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return nil, err
	}
	type entry struct {
		Subnet, PublicIP, BackendType, BackendData string
		Expires                                    time.Time
	}
	type content struct {
		Endpoint, API, Key, Config, Error string
		Leases                            []entry
		Invalid                           []string
	}
	var out []content
	for _, e := range all {
		for _, s := range e.Stores {
			c := content{Endpoint: e.URL, API: string(s.API), Key: s.Key, Config: string(s.Config)}
			if err := cmp.Or(s.Err, s.LeasesErr); err != nil {
				c.Error = err.Error()
			}
			for _, l := range s.Leases {
				c.Leases = append(c.Leases, entry{l.Subnets.String(), l.PublicIP.String(), l.BackendType, l.BackendData, l.Expires})
			}
			for _, i := range s.Invalid {
				c.Invalid = append(c.Invalid, fmt.Sprintf("%s: %v", i.Key, i.Err))
			}
			out = append(out, c)
		}
	}
	return json.MarshalIndent(out, "", "  ")
}

// WriteBundle writes the report and the files as a tar.gz to path, redacted, readable by the owner
// only.
func WriteBundle(path string, r Report, files []File, redact *Redactor) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write bundle: %w", err)
		}
	}()
	if err := bundle(f, r, files, redact, time.Now()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// bundle writes the tar.gz. Its first file lists the others, with the reasons for those that are
// missing.
func bundle(w io.Writer, r Report, files []File, redact *Redactor, now time.Time) error {
	var text, asJSON bytes.Buffer
	if err := errors.Join((Style{}).Text(&text, r), r.JSON(&asJSON)); err != nil {
		return err
	}
	files = append([]File{{Name: "report.txt", Content: text.Bytes()}, {Name: "report.json", Content: asJSON.Bytes()}}, files...)
	var index strings.Builder
	for i, f := range files {
		content := redact.String(string(f.Content[:min(len(f.Content), maxFile)]))
		files[i].Content = []byte(content)
		switch {
		case f.Err != nil && len(f.Content) == 0:
			fmt.Fprintf(&index, "%s: missing: %v\n", f.Name, f.Err)
		case f.Err != nil:
			fmt.Fprintf(&index, "%s: incomplete: %v\n", f.Name, f.Err)
		case len(f.Content) > maxFile:
			fmt.Fprintf(&index, "%s: the first %d of %d bytes\n", f.Name, maxFile, len(f.Content))
		default:
			fmt.Fprintf(&index, "%s: %d bytes\n", f.Name, len(content))
		}
	}
	files = append([]File{{Name: "index.txt", Content: []byte(redact.String(index.String()))}}, files...)
	zip := gzip.NewWriter(w)
	tape := tar.NewWriter(zip)
	for _, f := range files {
		if f.Err != nil && len(f.Content) == 0 {
			continue
		}
		head := &tar.Header{Name: "flanneld-doctor/" + f.Name, Mode: 0o600, Size: int64(len(f.Content)), ModTime: now, Typeflag: tar.TypeReg}
		if err := tape.WriteHeader(head); err != nil {
			return err
		}
		if _, err := tape.Write(f.Content); err != nil {
			return err
		}
	}
	return errors.Join(tape.Close(), zip.Close())
}
