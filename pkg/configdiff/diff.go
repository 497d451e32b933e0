package configdiff

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Line is a line of a difference.
type Line struct {
	Op   Op
	Text string
}

// Op is what happens to a line.
type Op byte

// What happens to a line.
const (
	Keep   Op = ' '
	Remove Op = '-'
	Add    Op = '+'
)

// maxCells limits the memory of a comparison. Longer texts are compared as a whole.
const maxCells = 1 << 20

// diff returns the lines of two configs, or none if the configs are equal. JSON is compared
// regardless of white space.
func diff(before, after []byte) []Line {
	a, b := lines(before), lines(after)
	var all []Line
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		all = append(all, Line{Keep, a[0]})
		a, b = a[1:], b[1:]
	}
	var rest []string
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		rest = append(rest, a[len(a)-1])
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if len(a)+len(b) == 0 {
		return nil
	}
	all = append(all, changed(a, b)...)
	for i := len(rest) - 1; i >= 0; i-- {
		all = append(all, Line{Keep, rest[i]})
	}
	return all
}

// changed returns the difference by the longest common subsequence.
func changed(a, b []string) (all []Line) {
	if len(a)*len(b) > maxCells {
		for _, l := range a {
			all = append(all, Line{Remove, l})
		}
		for _, l := range b {
			all = append(all, Line{Add, l})
		}
		return all
	}
	common := make([][]int, len(a)+1) // length of the one of a[i:] and b[j:]
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			all = append(all, Line{Keep, a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			all = append(all, Line{Remove, a[i]})
			i++
		default:
			all = append(all, Line{Add, b[j]})
			j++
		}
	}
	return all
}

// maxDepth limits the nesting of JSON that is indented, whose length grows with its square.
const maxDepth = 100

// lines returns a config as lines: JSON with one line for each value, without the commas between
// them, and other text as it is. A byte order mark is a difference, because the original cannot read
// it.
func lines(config []byte) []string {
	var b bytes.Buffer
	if depth(config) > maxDepth || json.Indent(&b, bytes.TrimSpace(config), "", "  ") != nil {
		b.Reset()
		b.Write(config)
	}
	text := strings.TrimRight(b.String(), "\n")
	if text == "" {
		return nil
	}
	return strings.Split(strings.ReplaceAll(text, ",\n", "\n"), "\n")
}

// depth returns the nesting of JSON, or more if there are brackets in strings.
func depth(text []byte) (deepest int) {
	now := 0
	for _, c := range text {
		switch c {
		case '[', '{':
			now++
			deepest = max(deepest, now)
		case ']', '}':
			now--
		}
	}
	return deepest
}
