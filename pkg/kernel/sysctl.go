package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"

	"flanneld/pkg/dataplane"
)

func init() {
	register(dataplane.KindSysctl, &handler{
		read: func(g *reader) error {
			values, err := g.k.Sysctls(g.scope.Sysctls)
			maps.Copy(g.s.Sysctls, values)
			return err
		},
		apply: func(k *Kernel, op dataplane.Op) error { return k.setSysctl(dataplane.KindSysctl.Of(op)) },
	})
}

// Sysctls returns the values of the sysctls that exist, by path below /proc/sys.
func (k *Kernel) Sysctls(paths []string) (map[string]string, error) {
	values := map[string]string{}
	if len(paths) == 0 {
		return values, nil
	}
	err := k.ns.Do(func() error {
		for _, p := range paths {
			b, err := fs.ReadFile(os.DirFS("/proc/sys"), p)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl: %w", err)
			}
			values[p] = strings.TrimSpace(string(b))
		}
		return nil
	})
	return values, err
}

func (k *Kernel) setSysctl(path, value string) error {
	if !fs.ValidPath(path) {
		return fmt.Errorf("sysctl %q: %w", path, fs.ErrInvalid)
	}
	return k.ns.Do(func() error {
		// Without O_CREATE: it is an error if the file does not exist.
		f, err := os.OpenFile("/proc/sys/"+path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}
