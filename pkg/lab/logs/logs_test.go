package logs_test

import (
	"log/slog"
	"slices"
	"testing"

	"flanneld/pkg/lab/logs"
)

func TestFindAndCommand(t *testing.T) {
	var b logs.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("one", "command", "reboot")
	log.Warn("two", "command", `sh -c "x=1; y"`, "next", "a b")
	log.Warn("three")
	var commands []string
	for _, line := range logs.Find(b.String(), "level=") {
		commands = append(commands, logs.Command(line))
	}
	if !slices.Equal(commands, []string{"reboot", `sh -c "x=1; y"`, ""}) || b.Count("level=WARN") != 2 || len(logs.Find(b.String(), "level=WARN", "msg=t")) != 2 {
		t.Errorf("%q of\n%s", commands, b.String())
	}
}
