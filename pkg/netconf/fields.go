package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Fields is a JSON object whose values are read one at a time, so that an error can name the field,
// its value and what it must be. Keys match case-insensitively and the last duplicate wins, as in
// every generation of the original. Keys that are never read are ignored. Errors are kept: Err
// returns the first one, All returns all of them.
type Fields struct {
	path   string // prefix of names in errors, such as "Backend."
	values map[string]json.RawMessage
	names  map[string]string // the keys as they are written
	again  []string          // the keys that are there more than once, as they are written last
	read   map[string]bool   // keys that were read
	errs   *[]error          // shared with nested objects
}

// noFields returns an object without keys, whose errors are among those of f.
func (f *Fields) noFields(path string) *Fields {
	return &Fields{path: path, read: map[string]bool{}, errs: f.errs}
}

// ParseFields parses exactly one JSON object.
func ParseFields(raw []byte, path string) (*Fields, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	open, err := dec.Token()
	if err != nil {
		return nil, jsonError(raw, err)
	}
	if open != json.Delim('{') {
		return nil, fmt.Errorf("must be a JSON object, not %s", show(raw))
	}
	f := &Fields{
		path: path, values: map[string]json.RawMessage{}, names: map[string]string{}, read: map[string]bool{}, errs: new([]error),
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, jsonError(raw, err)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, jsonError(raw, err)
		}
		name := strings.ToLower(key.(string))
		if _, there := f.values[name]; there {
			f.again = append(f.again, key.(string))
		}
		f.values[name], f.names[name] = v, key.(string)
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, jsonError(raw, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("must be one JSON object, without anything after it")
	}
	return f, nil
}

// jsonError returns the error of a text that is no JSON object, with its place.
func jsonError(raw []byte, err error) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return errors.New("must be a JSON object, and is empty")
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("must be complete JSON, and ends too early")
	}
	var syntax *json.SyntaxError
	if errors.As(json.Unmarshal(raw, new(json.RawMessage)), &syntax) { // the decoder's error has no place
		before := raw[:max(0, min(int(syntax.Offset), len(raw))-1)]
		line := before[bytes.LastIndexByte(before, '\n')+1:]
		err = fmt.Errorf("line %d, column %d: %w", bytes.Count(before, []byte("\n"))+1, utf8.RuneCount(line)+1, syntax)
	}
	return fmt.Errorf("must be JSON: %w", err)
}

// Err returns the first error so far, also of nested objects and of the object that this one is
// nested in.
func (f *Fields) Err() error {
	if len(*f.errs) == 0 {
		return nil
	}
	return (*f.errs)[0]
}

// All returns all errors so far, at most one of a field.
func (f *Fields) All() []error { return *f.errs }

// Fail records that the value of a field is invalid and what it must be.
func (f *Fields) Fail(name, accepted string) {
	err := &fieldError{f.path + name, show(f.values[strings.ToLower(name)]), accepted}
	for _, before := range *f.errs {
		if e, ok := before.(*fieldError); ok && e.field == err.field {
			return
		}
	}
	*f.errs = append(*f.errs, err)
}

// fieldError is the error of a field.
type fieldError struct{ field, value, accepted string }

// Error implements error.
func (e *fieldError) Error() string {
	return e.field + ": " + e.value + ": must be " + e.accepted
}

// Ignored returns the keys that were not read, with the path of the object, in order.
func (f *Fields) Ignored() (keys []string) {
	for name := range f.values {
		if !f.read[name] {
			keys = append(keys, f.path+f.names[name])
		}
	}
	slices.Sort(keys)
	return keys
}

// Repeated returns the keys that are there more than once, with the path of the object, in order.
func (f *Fields) Repeated() (keys []string) {
	for _, name := range f.again {
		keys = append(keys, f.path+name)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// get returns the value, or nil if it is absent or null.
func (f *Fields) get(name string) json.RawMessage {
	f.read[strings.ToLower(name)] = true
	v := f.values[strings.ToLower(name)]
	if f.isNull(name) {
		return nil
	}
	return v
}

func (f *Fields) isNull(name string) bool {
	return string(f.values[strings.ToLower(name)]) == "null"
}

// Int reads an integer from least to most. It returns def if the value is absent or null.
func (f *Fields) Int(name string, def, least, most int) int {
	v := f.get(name)
	if v == nil {
		return def
	}
	n, err := strconv.Atoi(string(v))
	if err != nil || n < least || n > most {
		f.Fail(name, fmt.Sprintf("a whole number from %d to %d", least, most))
		return def
	}
	return n
}

// Bool reads a boolean. It returns def if the value is absent or null.
func (f *Fields) Bool(name string, def bool) bool {
	v := f.get(name)
	switch string(v) {
	case "":
		return def
	case "true":
		return true
	case "false":
		return false
	}
	f.Fail(name, "true or false")
	return def
}

// choice reads a boolean. It returns Unset if the value is absent or null.
func (f *Fields) choice(name string) Choice {
	if f.get(name) == nil {
		return Unset
	}
	if f.Bool(name, false) {
		return Yes
	}
	return No
}

// String reads a string. It returns def if the value is absent or null.
func (f *Fields) String(name, def string) string {
	v := f.get(name)
	if v == nil {
		return def
	}
	s := def
	if json.Unmarshal(v, &s) != nil {
		f.Fail(name, "a string")
	}
	return s
}

// text reads a string field that may be absent but not null.
func (f *Fields) text(name, accepted string) (s string, present bool) {
	if f.isNull(name) {
		f.Fail(name, accepted)
		return "", false
	}
	s = f.String(name, "")
	return s, s != ""
}

// Addr reads an IPv4 address. It returns an invalid address if the value is absent or 0.0.0.0.
func (f *Fields) Addr(name string) netip.Addr {
	const accepted = `an IPv4 address such as "10.42.16.0"`
	s, ok := f.text(name, accepted)
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		f.Fail(name, accepted)
		return netip.Addr{}
	}
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// Object reads a nested object. It returns nil if the value is absent or null.
func (f *Fields) Object(name string) *Fields {
	v := f.get(name)
	if v == nil {
		return nil
	}
	o, err := ParseFields(v, f.path+name+".")
	if err != nil {
		f.Fail(name, "a JSON object")
		return nil
	}
	o.errs = f.errs
	return o
}

// show returns a raw value for an error message, truncated if it is long.
func show(raw []byte) string {
	const most = 64
	if len(raw) == 0 {
		return "(missing)"
	}
	if len(raw) > most {
		return strings.ToValidUTF8(string(raw[:most]), "") + "…"
	}
	return string(raw)
}
