//go:build race

package daemon

// raced is how much slower the race detector makes the tests.
const raced = 10
