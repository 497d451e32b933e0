//go:build !race

package daemon

const raced = 1
