package etcdv2

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/registry"
)

// scanner parses an answer of the keys API as it arrives, and keeps only as much of each key as a
// lease or a network config can have. The client, with encoding/json, would hold all of it.
//
// It finds the end of what it skips, to any depth of nesting, and does not check it otherwise.
type scanner struct {
	in *bufio.Reader
	// The last string as JSON, unless it was too long, and a buffer for its value.
	text, plain []byte
}

var errBroken = errors.New("answer is not one of etcd's v2 keys API: it is broken JSON")

// A value that is too long is replaced by this mark and its length in bytes. The same text in a key
// is neither a lease nor a config.
const longMark = "\x00"

// long returns the length of a value that was too long to be held.
func long(value string) (size int64, is bool) {
	text, is := strings.CutPrefix(value, longMark)
	if !is {
		return 0, false
	}
	size, err := strconv.ParseInt(text, 10, 64)
	return size, err == nil
}

func newScanner(r io.Reader) *scanner { return &scanner{in: bufio.NewReaderSize(r, 32<<10)} }

// answer reads a whole answer. It ignores the previous node. child, if not nil, is called with each
// node directly below the node; those below these are skipped.
func (s *scanner) answer(child func(*client.Node)) (*client.Response, error) {
	var resp client.Response
	if err := s.expect('{'); err != nil {
		return nil, err
	}
	err := s.object(func(name string, first byte) (err error) {
		switch {
		case name == "action" && first == '"':
			resp.Action, err = s.short()
			return err
		case name == "node" && first == '{':
			resp.Node, err = s.node(child)
			return err
		}
		return s.skip(first)
	})
	if err != nil {
		return nil, err
	}
	switch c, err := s.next(); {
	case err == nil:
		return nil, fmt.Errorf("%w: %q after its end", errBroken, c)
	case !errors.Is(err, errBroken): // at the end of the answer
		return nil, err
	}
	if resp.Node == nil {
		return nil, errNoNode
	}
	return &resp, nil
}

// node reads a node after its {.
func (s *scanner) node(child func(*client.Node)) (*client.Node, error) {
	var n client.Node
	err := s.object(func(name string, first byte) (err error) {
		switch {
		case name == "key" && first == '"':
			n.Key, err = s.key()
		case name == "value" && first == '"':
			n.Value, err = s.value()
		case name == "dir":
			n.Dir = first == 't'
			err = s.skip(first)
		case name == "modifiedIndex":
			n.ModifiedIndex, err = s.number(first)
		case name == "createdIndex":
			n.CreatedIndex, err = s.number(first)
		case name == "ttl" && first != '-':
			var ttl uint64
			ttl, err = s.number(first)
			n.TTL = int64(min(ttl, 1<<32)) // a longer one would overflow a Duration
		case name == "expiration" && first == '"':
			n.Expiration = new(time.Time) // only tells that there is one; TTL has the time
			err = s.skip(first)
		case name == "nodes" && first == '[' && child != nil:
			err = s.array(func(first byte) error {
				if first != '{' {
					return s.skip(first)
				}
				n, err := s.node(nil)
				if err == nil {
					child(n)
				}
				return err
			})
		default:
			err = s.skip(first)
		}
		return err
	})
	return &n, err
}

// name reads the rest of the name of a member. Only a few names matter.
func (s *scanner) name() (string, error) {
	if _, err := s.string(64); err != nil {
		return "", err
	}
	for _, known := range []string{"action", "node", "key", "value", "dir", "modifiedIndex", "createdIndex", "ttl", "expiration", "nodes"} {
		if string(s.text[1:len(s.text)-1]) == known {
			return known, nil
		}
	}
	return s.unquoted()
}

// short reads the rest of a string that matters only if it is short.
func (s *scanner) short() (string, error) {
	if _, err := s.string(64); err != nil {
		return "", err
	}
	return s.unquoted()
}

// key reads the rest of a key. If it is too long, it keeps the begin.
func (s *scanner) key() (string, error) {
	if _, err := s.string(registry.MaxValue); err != nil {
		return "", err
	}
	return s.unquoted()
}

// value reads the rest of a value. If it is too long, it marks it.
func (s *scanner) value() (string, error) {
	size, err := s.string(registry.MaxValue)
	switch {
	case err != nil:
		return "", err
	case size > registry.MaxValue:
		return longMark + strconv.FormatInt(size, 10), nil
	}
	return s.unquoted()
}
