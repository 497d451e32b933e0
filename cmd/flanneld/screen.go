package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// screen is the size of a terminal in characters; zero if it is unknown.
type screen struct{ rows, columns int }

// sizeOf returns the size of a terminal.
func sizeOf(terminal *os.File) (s screen) {
	if w, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ); err == nil {
		s = screen{int(w.Row), int(w.Col)}
	}
	return s
}

// show returns what replaces the content of the screen by a text. What does not fit is cut off, so
// that its beginning stays in sight. Lines are replaced one by one, so that the screen does not
// flicker.
func (s screen) show(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if most := s.rows - 1; s.rows > 2 && len(lines) > most { // the cursor has the last row
		lines = append(lines[:most-1:most-1], fmt.Sprintf("… %d more lines", len(lines)-most+1))
	}
	var b strings.Builder
	b.WriteString("\x1b[H") // the top left
	for _, l := range lines {
		b.WriteString(cutTo(l, s.columns) + "\x1b[K\n") // clears the rest of the line
	}
	b.WriteString("\x1b[J") // clears the lines below
	return b.String()
}

// cutTo returns the beginning of a line that fits into so many columns. Escape sequences for
// colours take none, and are kept.
func cutTo(line string, columns int) string {
	if columns < 2 {
		return line
	}
	var b strings.Builder
	used, escape := 0, false
	for _, r := range line {
		switch {
		case escape || r == '\x1b':
			escape = r != 'm'
			b.WriteRune(r)
			continue
		case used < columns-1:
			b.WriteRune(r)
		case used == columns-1:
			b.WriteRune('…')
		}
		used++
	}
	if used <= columns {
		return line
	}
	return b.String()
}
