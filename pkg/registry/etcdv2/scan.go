package etcdv2

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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

// next returns the first byte that is no blank.
func (s *scanner) next() (byte, error) {
	for {
		c, err := s.in.ReadByte()
		switch {
		case err != nil:
			return 0, broken(err)
		case c != ' ' && c != '\t' && c != '\n' && c != '\r':
			return c, nil
		}
	}
}

// broken returns the error of an answer that ends too early.
func broken(err error) error {
	if err == io.EOF {
		return errBroken
	}
	return err
}

func (s *scanner) expect(want byte) error {
	c, err := s.next()
	if err == nil && c != want {
		err = fmt.Errorf("%w: %q in place of %q", errBroken, c, want)
	}
	return err
}

// object reads the members of an object, of which { was read. member is called with the name
// of each and the first byte of its value, and reads the rest of that.
func (s *scanner) object(member func(name string, first byte) error) error {
	for n := 0; ; n++ {
		c, err := s.next()
		if err == nil && c == '}' && n == 0 {
			return nil
		}
		if err == nil && c != '"' {
			err = fmt.Errorf("%w: %q in place of a name", errBroken, c)
		}
		var name string
		if err == nil {
			name, err = s.name()
		}
		if err == nil {
			err = s.expect(':')
		}
		if err == nil {
			c, err = s.next()
		}
		if err == nil {
			err = member(name, c)
		}
		if err != nil {
			return err
		}
		if more, err := s.more('}'); err != nil || !more {
			return err
		}
	}
}

// array reads the elements of an array, of which [ was read. element is called with the first
// byte of each, and reads the rest.
func (s *scanner) array(element func(first byte) error) error {
	for n := 0; ; n++ {
		c, err := s.next()
		if err == nil && c == ']' && n == 0 {
			return nil
		}
		if err == nil {
			err = element(c)
		}
		if err != nil {
			return err
		}
		if more, err := s.more(']'); err != nil || !more {
			return err
		}
	}
}

// more reads what is between two elements, or the end.
func (s *scanner) more(end byte) (bool, error) {
	c, err := s.next()
	if err == nil && c != ',' && c != end {
		err = fmt.Errorf("%w: %q in place of %q", errBroken, c, end)
	}
	return c == ',', err
}

// skip reads the rest of whatever begins with first. It does not recurse.
func (s *scanner) skip(first byte) error {
	for depth := 0; ; {
		switch first {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return fmt.Errorf("%w: %q in place of a value", errBroken, first)
			}
		case '"':
			if _, err := s.string(0); err != nil {
				return err
			}
		case ',', ':':
			if depth == 0 {
				return fmt.Errorf("%w: %q in place of a value", errBroken, first)
			}
		default:
			if err := s.word(); err != nil {
				return err
			}
		}
		if depth == 0 {
			return nil
		}
		var err error
		if first, err = s.next(); err != nil {
			return err
		}
	}
}

// word reads the rest of a number or a literal that does not matter.
func (s *scanner) word() error {
	for {
		c, err := s.in.ReadByte()
		if err != nil {
			return broken(err)
		}
		if strings.IndexByte(" \t\r\n,:]}[{\"", c) >= 0 {
			return s.in.UnreadByte()
		}
	}
}

// number reads the rest of a whole number.
func (s *scanner) number(c byte) (n uint64, err error) {
	for digits := 0; ; digits++ {
		digit := uint64(c - '0')
		switch {
		case c < '0' || c > '9':
			if digits == 0 || c == '.' || c == 'e' || c == 'E' {
				return 0, fmt.Errorf("%w: %q in place of a number", errBroken, c)
			}
			return n, s.in.UnreadByte()
		case n > (math.MaxUint64-digit)/10:
			return 0, fmt.Errorf("%w: a number is too large", errBroken)
		}
		n = n*10 + digit
		if c, err = s.in.ReadByte(); err != nil {
			return 0, broken(err)
		}
	}
}

// string reads the rest of a string. What of it is in the first most bytes it leaves in s.text,
// perhaps with some more. size is how long all of it is.
func (s *scanner) string(most int64) (size int64, err error) {
	s.text = append(s.text[:0], '"')
	for {
		if _, err := s.in.Peek(1); err != nil {
			return size, broken(err)
		}
		chunk, _ := s.in.Peek(s.in.Buffered())
		n, escaped := 0, 0
		for n < len(chunk) && chunk[n] != '"' {
			if chunk[n] == '\\' {
				if n+1 == len(chunk) || chunk[n+1] == 'u' {
					break
				}
				n++
				escaped++
			}
			n++
		}
		if size < most {
			s.text = append(s.text, chunk[:n]...)
		}
		size += int64(n - escaped)
		ends := n < len(chunk) && chunk[n] == '"'
		escape := n < len(chunk) && !ends
		if ends {
			n++
		}
		s.in.Discard(n) // of what is there
		switch {
		case ends:
			s.text = append(s.text, '"')
			return size, nil
		case escape:
			width, err := s.escape(size < most)
			if err != nil {
				return size, err
			}
			size += width
		}
	}
}

// escape reads an escape, and returns how long in bytes its character is. A half of a
// surrogate pair counts as two, as it is four for both.
func (s *scanner) escape(keep bool) (width int64, err error) {
	text, err := s.in.Peek(2)
	width = 1
	if err == nil && text[1] == 'u' {
		text, err = s.in.Peek(len(`\u0000`))
		if err == nil {
			r, perr := strconv.ParseUint(string(text[2:]), 16, 16)
			switch {
			case perr != nil:
				return 0, fmt.Errorf("%w: %q in a string", errBroken, text)
			case r >= 0xd800 && r < 0xe000 || r >= 0x80 && r < 0x800:
				width = 2
			case r >= 0x800:
				width = 3
			}
		}
	}
	if err != nil {
		return 0, broken(err)
	}
	if keep {
		s.text = append(s.text, text...)
	}
	_, err = s.in.Discard(len(text))
	return width, err
}

// unquoted returns the string that s.text is.
func (s *scanner) unquoted() (string, error) {
	plain := s.text[1 : len(s.text)-1]
	s.plain = s.plain[:0]
	for i := 0; i < len(plain); i++ {
		c := plain[i]
		if c == '\\' && i+1 < len(plain) && strings.IndexByte(`"\/`, plain[i+1]) >= 0 {
			i++
			c = plain[i]
		} else if c < ' ' || c >= 0x80 || c == '\\' {
			var text string
			if err := json.Unmarshal(s.text, &text); err != nil {
				return "", fmt.Errorf("%w: %w", errBroken, err)
			}
			return text, nil
		}
		s.plain = append(s.plain, c)
	}
	return string(s.plain), nil
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
