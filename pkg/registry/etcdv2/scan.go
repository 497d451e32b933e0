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
	in  *bufio.Reader
	err error
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
	s.expect('{')
	s.object(func(name string, first byte) {
		switch {
		case name == "action" && first == '"':
			resp.Action = s.short()
		case name == "node" && first == '{':
			resp.Node = s.node(child)
		default:
			s.skip(first)
		}
	})
	if s.err != nil {
		return nil, s.err
	}
	switch c := s.next(); {
	case s.err == nil:
		return nil, fmt.Errorf("%w: %q after its end", errBroken, c)
	case !errors.Is(s.err, errBroken): // at the end of the answer
		return nil, s.err
	case resp.Node == nil:
		return nil, errNoNode
	}
	return &resp, nil
}

// node reads a node after its {.
func (s *scanner) node(child func(*client.Node)) *client.Node {
	var n client.Node
	s.object(func(name string, first byte) {
		switch {
		case name == "key" && first == '"':
			s.string(registry.MaxValue) // of a longer one, the begin
			n.Key = s.unquoted()
		case name == "value" && first == '"':
			if size := s.string(registry.MaxValue); size > registry.MaxValue {
				n.Value = longMark + strconv.FormatInt(size, 10)
			} else {
				n.Value = s.unquoted()
			}
		case name == "dir":
			n.Dir = first == 't'
			s.skip(first)
		case name == "modifiedIndex":
			n.ModifiedIndex = s.number(first)
		case name == "createdIndex":
			n.CreatedIndex = s.number(first)
		case name == "ttl" && first != '-':
			n.TTL = int64(min(s.number(first), 1<<32)) // a longer one would overflow a Duration
		case name == "expiration" && first == '"':
			n.Expiration = new(time.Time) // only tells that there is one; TTL has the time
			s.skip(first)
		case name == "nodes" && first == '[' && child != nil:
			s.elements(']', func(first byte) {
				if first != '{' {
					s.skip(first)
				} else if n := s.node(nil); s.err == nil {
					child(n)
				}
			})
		default:
			s.skip(first)
		}
	})
	return &n
}

// name reads the rest of the name of a member. Only a few names matter.
func (s *scanner) name() string {
	s.string(64)
	if s.err != nil {
		return ""
	}
	name := s.text[1 : len(s.text)-1]
	for _, known := range []string{"action", "node", "key", "value", "dir", "modifiedIndex", "createdIndex", "ttl", "expiration", "nodes"} {
		if string(name) == known {
			return known
		}
	}
	return s.unquoted()
}

// short reads the rest of a string that matters only if it is short.
func (s *scanner) short() string {
	s.string(64)
	return s.unquoted()
}
