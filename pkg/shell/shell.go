// Package shell writes commands for a POSIX shell, for people to paste. Invariant: whatever a word
// contains, the shell takes it as one word, and nothing in it as a command. A terminal that shows the
// command, or that it is pasted into, has nothing to interpret either: ^C in a name would end the
// line, and the rest of the name would be a command.
package shell

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Word returns s as one word of a command.
func Word(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_./:=@%+,-", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return quote(s)
	}
	return printed(s)
}

// quote returns s in single quotes.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// printed returns s as the output of a command. The shell strips line feeds at its end.
func printed(s string) string {
	end := strings.TrimRight(s, "\n")
	var b strings.Builder
	for rest := end; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		switch char := rest[:size]; {
		case r == '%' || r == '\\':
			b.WriteString(char + char)
		case unicode.IsPrint(r) && (r != utf8.RuneError || size > 1):
			b.WriteString(char)
		default:
			for _, c := range []byte(char) {
				fmt.Fprintf(&b, "\\%03o", c)
			}
		}
		rest = rest[size:]
	}
	word := `"$(printf ` + quote(b.String()) + `)"`
	if end != s {
		word += quote(s[len(end):])
	}
	return word
}

// Command returns a command of words.
func Command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = Word(w)
	}
	return strings.Join(quoted, " ")
}
