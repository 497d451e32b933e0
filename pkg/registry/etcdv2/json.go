package etcdv2

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// The part of a scanner that parses JSON of any content.

// next returns the next byte that is not blank.
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

// broken returns the error for an answer that ends too early.
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

// object reads the members of an object after its {. It calls member with the name of each and the
// first byte of its value; member reads the rest.
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

// array reads the elements of an array after its [. It calls element with the first byte of each;
// element reads the rest.
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

// more reads the separator of two elements, or the end.
func (s *scanner) more(end byte) (bool, error) {
	c, err := s.next()
	if err == nil && c != ',' && c != end {
		err = fmt.Errorf("%w: %q in place of %q", errBroken, c, end)
	}
	return c == ',', err
}

// skip reads the rest of the value that starts with first. It does not recurse.
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

// word reads the rest of a number or a literal and ignores it.
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

// string reads the rest of a string. It stores at least the first most bytes in s.text and returns
// the length of the whole string.
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
		s.in.Discard(n) // of the buffered bytes
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

// escape reads an escape sequence and returns the length of its character in bytes. A half of a
// surrogate pair counts as two, because both halves have four.
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

// unquoted returns the string in s.text.
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
