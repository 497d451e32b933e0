// Package reflect2 takes the place of github.com/modern-go/reflect2, by a replace directive in
// go.mod. See package jsoniter beside it.
package reflect2

// Type is the part of a type's description that etcd's v2 client names.
type Type interface{ String() string }
