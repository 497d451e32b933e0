package shell

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// TestShellReadsTheWords: a shell gets the words that were written, and executes nothing in them.
func TestShellReadsTheWords(t *testing.T) {
	words := []string{"plain", "/a/b.c", "two words", "", "it's", `"$(echo x)"`, "`echo x`", "a;b&c|d>e", "line\nend", "-m", "\\", "!", "~", "*", "ü", "#x", "$HOME", "{a,b}",
		"\x03reboot;#", "\x1b[2J", "50%\r", "a\\033\n\n", "\n", "\xff'\xc3(", "\u202ex", "\ufffd", "%s\x7f%d"}
	out, err := exec.Command("sh", "-c", "printf '%s\\0' "+Command(words...)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); strings.Join(got, "|") != strings.Join(words, "|") {
		t.Errorf("got %q, want %q", got, words)
	}
	for _, word := range words {
		if text := strings.TrimSuffix(Word(word), "\n'"); strings.ContainsFunc(strings.TrimRight(text, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(text) {
			t.Errorf("%q contains what a terminal interprets", text)
		}
	}
	if c := Command("ip", "addr", "add", "10.42.7.0/32", "dev", "flannel.1"); c != "ip addr add 10.42.7.0/32 dev flannel.1" {
		t.Errorf("%s", c)
	}
}
