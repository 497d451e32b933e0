// Package dataplane describes, as comparable values, what a kernel should hold
// and what it holds: links, addresses, FDB entries, neighbours, nexthops, routes, sysctls.
// Diff turns the difference into ordered operations, and Text prints a State in
// the notation of ip(8).
//
// All that differs between the kinds of objects is in one table, kinds.go; what concerns
// all of them walks it. To add a kind: its types, its map in State and its Descriptor
// there, a driver that reads and writes it, a test. Links, nexthops and routes, which
// depend on one another, have rules of their own in files of their own.
//
// It does no I/O and knows no backend. Objects name devices by name; indexes are
// resolved where operations are applied. Invariant: applying Diff(want, have)
// makes a second Diff empty, and touches nothing outside the Scope.
package dataplane
