// Package subnetenv reads and writes subnet.env, the file of shell variables that contains the
// host's subnet for docker's units and mk-docker-opts.sh, and for the daemon itself after a
// restart; and, beside it, the daemon's claim on its lease, which no other program reads.
//
// It does not decide the content of the files. Invariant: a reader of a path sees either the whole
// old content or the whole new one, and a file with the right content is not touched.
package subnetenv

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"flanneld/pkg/shell"
)

// DefaultFile is the path that docker's units read.
const DefaultFile = "/run/flannel/subnet.env"

// Env is the content of subnet.env.
type Env struct {
	Network netip.Prefix // the whole network
	Subnet  netip.Prefix // this host's subnet, masked; written with its first host address
	MTU     int          // of containers, bytes
	IPMasq  bool         // the daemon masquerades, so that docker need not
}

// maxFile is the maximum length of a file that is read, in bytes. The usual length is about a
// hundred.
const maxFile = 64 << 10

// Format returns the content of the file.
func (e Env) Format() []byte {
	return fmt.Appendf(nil, "FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s/%d\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n",
		e.Network, e.Subnet.Addr().Next(), e.Subnet.Bits(), e.MTU, e.IPMasq)
}

// Parse parses lines of KEY=VALUE, with or without export and quotes. Anything else is skipped,
// such as options that mk-docker-opts.sh was told to write to the same file; missing or malformed
// values are invalid. Only prefixes are parsed, because a restart needs nothing else.
func Parse(b []byte) Env {
	var e Env
	for line := range strings.Lines(string(b)) {
		key, value := assignment(line)
		p, err := netip.ParsePrefix(value)
		if err != nil || !p.Addr().Is4() {
			continue
		}
		switch key {
		case "FLANNEL_NETWORK":
			e.Network = p.Masked()
		case "FLANNEL_SUBNET":
			if p.Bits() <= 30 { // longer prefixes are never leased
				e.Subnet = p.Masked()
			}
		}
	}
	return e
}

// assignment splits a line of KEY=VALUE. For other lines, key is not a variable name.
func assignment(line string) (key, value string) {
	key, value, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
	return strings.TrimSpace(key), strings.Trim(value, `"' `)
}

// compare reports whether b assigns each variable of e its value, where the last assignment counts,
// and returns all lines about other variables.
func (e Env) compare(b []byte) (same bool, others string) {
	var rest strings.Builder
	have, want := map[string]string{}, map[string]string{}
	for line := range strings.Lines(string(e.Format())) {
		key, value := assignment(line)
		want[key] = value
	}
	for line := range strings.Lines(string(b)) {
		key, value := assignment(line)
		if _, ours := want[key]; ours {
			have[key] = value
		} else {
			rest.WriteString(line)
		}
	}
	return maps.Equal(have, want), rest.String()
}

// Read reads the file. If it is missing, Read returns an empty Env and no error.
func Read(path string) (Env, error) {
	b, err := read(path)
	if err != nil {
		return Env{}, fmt.Errorf("read subnet file: %w", err)
	}
	return Parse(b), nil
}

// read returns at most maxFile bytes of a file, and nil if it is missing. It does not block on a
// pipe.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Write sets the variables of e in the file if they differ, and reports whether it has changed the
// file. Lines about other variables do not count as a difference. If it writes the file, they are
// kept in a repair, that is if the file had the values of e before; otherwise they are removed,
// because they may be derived from the old values. It creates missing directories, and keeps the
// mode of an existing file; a new one is readable by all.
func Write(path string, e Env, repair bool) (changed bool, err error) {
	want := e.Format()
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
		have, err := read(path)
		same, others := e.compare(have)
		if err == nil && same {
			return false, nil
		}
		isText := utf8.ValidString(others) && !strings.Contains(others, "\x00")
		if err == nil && repair && len(have) < maxFile && isText {
			want = append(want, others...)
		}
	}
	if err := replace(path, want, mode); err != nil {
		return false, fmt.Errorf("write subnet file: %w", err)
	}
	return true, nil
}

// Command returns the command that gives the file at path the variables of e, as a keeper does, and
// keeps its other lines. It is empty if the file has them.
func Command(path string, e Env) (string, error) {
	have, err := read(path)
	if err != nil {
		return "", fmt.Errorf("read subnet file: %w", err)
	}
	same, others := e.compare(have)
	if same && have != nil {
		return "", nil
	}
	words := []string{"printf", "%s\\n"}
	for line := range strings.Lines(string(e.Format()) + others) {
		words = append(words, strings.TrimSuffix(line, "\n"))
	}
	return fmt.Sprintf("%s && %s >%s", shell.Command("mkdir", "-p", filepath.Dir(path)), shell.Command(words...), shell.Word(path)), nil
}

// replace replaces the content of a file. Its errors do not contain the path of the temporary file,
// which differs each time.
func replace(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return withoutPath(err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = withoutPath(err)
		}
	}()
	_, err = f.Write(content)
	err = cmp.Or(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// withoutPath returns an error without the paths that it contains.
func withoutPath(err error) error {
	var file *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &file):
		return file.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}
