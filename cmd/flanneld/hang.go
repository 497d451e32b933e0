package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
)

// goroutines returns the functions of flanneld's packages that goroutines execute, with their
// number if there are several, as "kernel.(*Watch).run" or "subnet.Follow x2". It shows why a
// shutdown hangs.
func goroutines() string {
	stacks := make([]byte, 1<<20)
	return functions(string(stacks[:runtime.Stack(stacks, true)]))
}

// functions parses stacks in the format of runtime.Stack, with the innermost call first.
func functions(stacks string) string {
	found := map[string]int{}
	for goroutine := range strings.SplitSeq(stacks, "\n\n") {
		for line := range strings.Lines(goroutine) {
			if call, ok := strings.CutPrefix(line, "flanneld/pkg/"); ok {
				found[call[:strings.LastIndexByte(call, '(')]]++
				break
			}
		}
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if n := found[name]; n > 1 {
			name = fmt.Sprintf("%s x%d", name, n)
		}
		all = append(all, name)
	}
	return strings.Join(all, ", ")
}
