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

// scanner reads an answer of the keys API as it comes, and keeps of each key no more than what
// can be a lease or a network config. The client, like encoding/json, would hold all of it.
//
// What is skipped is not checked, but for where it ends, and may be nested to any depth.
type scanner struct {
	in *bufio.Reader
	// The last string, as JSON, unless it was too long; and room for what it says.
	text, plain []byte
}

var errBroken = errors.New("answer is not one of etcd's v2 keys API: it is broken JSON")

// A value that is too long is replaced by this mark and its length in bytes. Whoever writes
// the same into a key has written what is no lease and no config either.
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

// answer reads a whole answer. Of what it says of the node before, nothing is kept. child, if
// not nil, is called with each node that is directly below the node; what is below those is
// left out.
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
	case !errors.Is(err, errBroken): // at the end
		return nil, err
	}
	if resp.Node == nil {
		return nil, errNoNode
	}
	return &resp, nil
}

// node reads a node, of which { was read.
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
			n.TTL = int64(min(ttl, 1<<32)) // more is for ever, and would not be a Duration
		case name == "expiration" && first == '"':
			n.Expiration = new(time.Time) // which moment that is, TTL tells
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

// name reads the rest of the name of a member, of which there are a few that matter.
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

// short reads the rest of a string that says something only if it is short.
func (s *scanner) short() (string, error) {
	if _, err := s.string(64); err != nil {
		return "", err
	}
	return s.unquoted()
}

// key reads the rest of a key; of one that is too long, at least the beginning.
func (s *scanner) key() (string, error) {
	if _, err := s.string(registry.MaxValue); err != nil {
		return "", err
	}
	return s.unquoted()
}

// value reads the rest of a value; one that is too long it marks.
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
