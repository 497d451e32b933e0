// Package dataplane describes kernel state, desired and actual, as comparable values: links,
// addresses, FDB entries, neighbours, nexthops, routes and sysctls. Diff returns the difference as
// ordered operations, and Text prints a State in the notation of ip(8).
//
// All differences between the kinds of objects are in one table in kinds.go. Code that handles
// every kind iterates over that table. To add a kind, add its types, its map in State, its
// Descriptor, a driver that reads and writes it, and a test. Links, nexthops and routes depend on
// one another and have their own rules in separate files.
//
// The package does no I/O and does not know the backends. Objects refer to devices by name; indexes
// are resolved when operations are applied. Invariant: after Diff(want, have) is applied, a second
// Diff is empty, and nothing outside the Scope is changed.
package dataplane
