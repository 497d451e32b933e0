package etcdv2

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// The part of a scanner that parses JSON of any content. After an error, all methods return at
// once, with any value.

// fail records the first error. An answer that ends too early is broken.
func (s *scanner) fail(err error) {
	if err == io.EOF {
		err = errBroken
	}
	if s.err == nil {
		s.err = err
	}
}

// misplaced fails because of a byte in place of something.
func (s *scanner) misplaced(c byte, wanted string) {
	s.fail(fmt.Errorf("%w: %q in place of %s", errBroken, c, wanted))
}

// next returns the next byte that is not blank.
func (s *scanner) next() byte {
	if s.err != nil {
		return 0
	}
	for {
		c, err := s.in.ReadByte()
		switch {
		case err != nil:
			s.fail(err)
			return 0
		case c != ' ' && c != '\t' && c != '\n' && c != '\r':
			return c
		}
	}
}

func (s *scanner) expect(want byte) {
	if c := s.next(); c != want {
		s.misplaced(c, strconv.QuoteRune(rune(want)))
	}
}

// object reads the members of an object after its {. It calls member with the name of each and the
// first byte of its value; member reads the rest.
func (s *scanner) object(member func(name string, first byte)) {
	s.elements('}', func(first byte) {
		if first != '"' {
			s.misplaced(first, "a name")
		}
		name := s.name()
		s.expect(':')
		member(name, s.next())
	})
}

// elements reads the elements of an array or an object after its opening bracket. It calls element
// with the first byte of each; element reads the rest.
func (s *scanner) elements(end byte, element func(first byte)) {
	c := s.next()
	if c == end {
		return
	}
	for s.err == nil {
		element(c)
		switch c = s.next(); c {
		case end:
			return
		case ',':
			c = s.next()
		default:
			s.misplaced(c, strconv.QuoteRune(rune(end)))
		}
	}
}

// skip reads the rest of the value that starts with first. It does not recurse.
func (s *scanner) skip(first byte) {
	for depth := 0; s.err == nil; first = s.next() {
		switch first {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			s.string(0)
		case ',', ':':
		default:
			s.word()
		}
		switch {
		case depth < 0 || depth == 0 && (first == ',' || first == ':'):
			s.misplaced(first, "a value")
		case depth == 0:
			return
		}
	}
}

// word reads the rest of a number or a literal and ignores it.
func (s *scanner) word() {
	for s.err == nil {
		c, err := s.in.ReadByte()
		switch {
		case err != nil:
			s.fail(err)
		case strings.IndexByte(" \t\r\n,:]}[{\"", c) >= 0:
			_ = s.in.UnreadByte() // cannot fail after ReadByte
			return
		}
	}
}

// number reads the rest of a whole number.
func (s *scanner) number(c byte) (n uint64) {
	for digits := 0; s.err == nil; digits++ {
		digit := uint64(c - '0')
		switch {
		case c < '0' || c > '9':
			if digits == 0 || c == '.' || c == 'e' || c == 'E' {
				s.misplaced(c, "a number")
			}
			_ = s.in.UnreadByte() // cannot fail after ReadByte
			return n
		case n > (math.MaxUint64-digit)/10:
			s.fail(fmt.Errorf("%w: a number is too large", errBroken))
		}
		n = n*10 + digit
		var err error
		if c, err = s.in.ReadByte(); err != nil {
			s.fail(err)
		}
	}
	return 0
}

// string reads the rest of a string. It stores at least the first most bytes in s.text and returns
// the length of the whole string.
func (s *scanner) string(most int64) (size int64) {
	s.text = append(s.text[:0], '"')
	for s.err == nil {
		if _, err := s.in.Peek(1); err != nil {
			s.fail(err)
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
		keep := size < most
		if keep {
			s.text = append(s.text, chunk[:n]...)
		}
		size += int64(n - escaped)
		s.in.Discard(n) // of the buffered bytes
		switch {
		case n == len(chunk):
		case chunk[n] == '"':
			s.in.Discard(1)
			s.text = append(s.text, '"')
			return size
		default:
			size += s.escape(keep)
		}
	}
	return 0
}

// escape reads an escape sequence and returns the length of its character in bytes. A half of a
// surrogate pair counts as two, because both halves have four.
func (s *scanner) escape(keep bool) (width int64) {
	text, err := s.in.Peek(2)
	width = 1
	if err == nil && text[1] == 'u' {
		text, err = s.in.Peek(len(`\u0000`))
		if err == nil {
			r, perr := strconv.ParseUint(string(text[2:]), 16, 16)
			switch {
			case perr != nil:
				err = fmt.Errorf("%w: %q in a string", errBroken, text)
			case r >= 0xd800 && r < 0xe000 || r >= 0x80 && r < 0x800:
				width = 2
			case r >= 0x800:
				width = 3
			}
		}
	}
	if err != nil {
		s.fail(err)
		return 0
	}
	if keep {
		s.text = append(s.text, text...)
	}
	s.in.Discard(len(text)) // of the buffered bytes
	return width
}

// unquoted returns the string in s.text.
func (s *scanner) unquoted() string {
	if s.err != nil {
		return ""
	}
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
				s.fail(fmt.Errorf("%w: %w", errBroken, err))
			}
			return text
		}
		s.plain = append(s.plain, c)
	}
	return string(s.plain)
}
