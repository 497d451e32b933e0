package main

import "testing"

func TestScreenShowsTheBeginning(t *testing.T) {
	for _, c := range []struct {
		screen
		text, want string
	}{
		{screen{}, "a long line\nb\n", "\x1b[Ha long line\x1b[K\nb\x1b[K\n\x1b[J"},
		{screen{3, 80}, "a\nb\n", "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"},
		{screen{3, 80}, "a\nb\nc\nd\n", "\x1b[Ha\x1b[K\n… 3 more lines\x1b[K\n\x1b[J"},
		{screen{24, 6}, "abcdef\nabcdefg\n\x1b[32mabcdefg\x1b[0m: é\n", "\x1b[Habcdef\x1b[K\nabcde…\x1b[K\n\x1b[32mabcde…\x1b[0m\x1b[K\n\x1b[J"},
		{screen{24, 6}, "\x1b[32mabcdef\x1b[0m", "\x1b[H\x1b[32mabcdef\x1b[0m\x1b[K\n\x1b[J"},
		{screen{24, 6}, "ééééééé", "\x1b[Hééééé…\x1b[K\n\x1b[J"},
	} {
		if got := c.show(c.text); got != c.want {
			t.Errorf("%+v: %q: %q, want %q", c.screen, c.text, got, c.want)
		}
	}
}
