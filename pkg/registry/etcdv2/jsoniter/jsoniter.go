// Package jsoniter takes the place of github.com/json-iterator/go, by a replace directive in go.mod,
// and decodes with encoding/json. etcd's v2 client is its only user.
//
// The library is no longer maintained, and it imports github.com/modern-go/reflect2, whose types
// have a method MethodByName. Because of that, the linker keeps every exported method of every type
// of the program, which takes 4 MB.
package jsoniter

import (
	"encoding/json"
	"unsafe"
)

// Config is a configuration. The client's one differs from encoding/json in that names of fields
// are case-sensitive. etcd sends no names that differ in case only.
type Config struct {
	EscapeHTML, SortMapKeys, ValidateJsonRawMessage, CaseSensitive bool
}

// Froze returns an API.
func (Config) Froze() API { return API{} }

// API decodes JSON.
type API struct{}

// Unmarshal decodes a value, like json.Unmarshal.
func (API) Unmarshal(text []byte, to any) error { return json.Unmarshal(text, to) }

// RegisterExtension does nothing. The client's extension changes how numbers are decoded into
// fields of interface types; its responses have none.
func (API) RegisterExtension(any) {}

// What follows is named by the extension, and never used.
type (
	DummyExtension struct{}
	Number         = json.Number
	ValueType      int
	Iterator       struct{}
	ValDecoder     interface {
		Decode(ptr unsafe.Pointer, iter *Iterator)
	}
)

const NumberValue ValueType = 0

func (*Iterator) WhatIsNext() ValueType      { return NumberValue }
func (*Iterator) ReadVal(any)                {}
func (*Iterator) Read() any                  { return nil }
func (*Iterator) ReportError(string, string) {}
