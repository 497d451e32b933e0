// Package subnetenv reads and writes subnet.env, the file of shell variables by
// which docker's units and mk-docker-opts.sh learn the host's subnet, and by
// which the daemon remembers it across a restart; and, beside it, the daemon's claim
// on its lease, which is nobody else's business.
//
// It does not decide what stands in the files. Invariant: a reader of a path
// sees either the whole old content or the whole new one, and subnet.env is not
// touched when it says the right thing already.
package subnetenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Env is the content of subnet.env.
type Env struct {
	Network netip.Prefix // the whole network
	Subnet  netip.Prefix // this host's, masked; written with its first host address
	MTU     int          // of containers, bytes
	IPMasq  bool         // whether the daemon was asked to masquerade, so that docker need not
}

// maxFile is the longest file, in bytes, that is read: the real one has about a
// hundred.
const maxFile = 64 << 10

// Format gives the file's bytes.
func (e Env) Format() []byte {
	return fmt.Appendf(nil, "FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s/%d\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n",
		e.Network, e.Subnet.Addr().Next(), e.Subnet.Bits(), e.MTU, e.IPMasq)
}

// Parse reads what it can: lines of KEY=VALUE, with or without export and
// quotes. Anything else, such as the options that mk-docker-opts.sh may have been
// told to write over the file, is passed over; what is missing or unreadable is
// left invalid. Only prefixes are read, for they are all that a restart needs.
func Parse(b []byte) Env {
	var e Env
	for line := range strings.Lines(string(b)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		key, value, _ := strings.Cut(line, "=")
		p, err := netip.ParsePrefix(strings.Trim(value, `"' `))
		if err != nil || !p.Addr().Is4() {
			continue
		}
		switch strings.TrimSpace(key) {
		case "FLANNEL_NETWORK":
			e.Network = p.Masked()
		case "FLANNEL_SUBNET":
			if p.Bits() <= 30 { // a longer one was never leased
				e.Subnet = p.Masked()
			}
		}
	}
	return e
}

// Read parses the file. A missing file is an empty Env and no error.
func Read(path string) (Env, error) {
	b, err := read(path)
	if err != nil {
		return Env{}, fmt.Errorf("read subnet file: %w", err)
	}
	return Parse(b), nil
}

// read gives at most maxFile bytes of a file, and none of one that is missing.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Write makes the file say e, and tells whether it had to change it. Missing
// directories are made; the mode of a file that exists is kept, a new one is
// readable by all.
func Write(path string, e Env) (changed bool, err error) {
	want := e.Format()
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
			return false, nil
		}
	}
	if err := replace(path, want, mode); err != nil {
		return false, fmt.Errorf("write subnet file: %w", err)
	}
	return true, nil
}

func replace(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
