package main

import (
	"log/slog"
	"strings"
	"testing"
)

// What cannot be pasted from the text form of a field stands on a line of its own.
func TestCommandIsLoggedAsItIsTyped(t *testing.T) {
	for _, command := range []string{
		"ip route del 10.42.7.0/24 dev eth0",
		`etcdctl put /coreos.com/network/config '{"Network":"10.42.0.0/16"}'`,
		`etcdctl put '/a\b/config' {}`,
	} {
		var b strings.Builder
		slog.New(newHandler(&b, slog.LevelInfo)).Warn("network config is missing, waiting for it", "command", command)
		line, rest, _ := strings.Cut(b.String(), "\n")
		if !strings.Contains(line, "command=") {
			t.Errorf("no field in %s", line)
		}
		if in := strings.Contains(line, command); in == (rest != "") || rest != "" && rest != "\t"+command+"\n" {
			t.Errorf("%s is logged as\n%s", command, b.String())
		}
	}
}
