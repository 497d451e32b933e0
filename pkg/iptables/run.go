package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	maxListing = 64 << 20 // bytes; 100,000 rules have about ten million
	maxStderr  = 4 << 10  // bytes of stderr
)

var errTooLong = errors.New("too much output")

// run executes a command, and kills it if it takes too long or prints too much.
func (t *Tables) run(ctx context.Context, input, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.timeout, fmt.Errorf("no end after %s", t.timeout))
	defer cancel()
	out, complaint := bounded{max: maxListing}, bounded{max: maxStderr, truncate: true}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second // for its children that keep the pipes open
	err := cmd.Run()
	switch {
	case out.full:
		err = errTooLong
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if err == nil {
		return out.buf.String(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Stat(path); errors.Is(gone, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", absent, err)
		}
	}
	if said := strings.Join(strings.Fields(complaint.buf.String()), " "); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return "", fmt.Errorf("%s: %w", filepath.Base(path), err)
}

// bounded stores at most max bytes. Further bytes are an error to the writer, or are discarded.
type bounded struct {
	buf      bytes.Buffer // not embedded, because its ReadFrom has no limit
	max      int
	truncate bool
	full     bool
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-b.buf.Len())
	b.full = b.full || keep < len(p)
	b.buf.Write(p[:keep])
	if b.full && !b.truncate {
		return keep, errTooLong
	}
	return len(p), nil
}
