package main

import (
	"bytes"
	"strings"
	"testing"

	"flanneld/pkg/cleanup"
)

func TestCleanupFlags(t *testing.T) {
	std := cleanup.Options{SubnetFile: "/run/flannel/subnet.env"}
	for _, c := range []struct {
		args, env string
		want      cleanup.Options
		err       string
	}{
		{"", "", std, ""},
		{"-subnet-file=/a", "FLANNELD_SUBNET_FILE=/b", cleanup.Options{SubnetFile: "/a"}, ""},
		{"--subnet-file /a", "", cleanup.Options{SubnetFile: "/a"}, ""},
		{"", "FLANNELD_SUBNET_FILE=/b FLANNELD_FILES=true FLANNELD_ETCD_ENDPOINTS=x", cleanup.Options{SubnetFile: "/b"}, ""},
		{"-dry-run --files", "", cleanup.Options{SubnetFile: "/run/flannel/subnet.env", DryRun: true, Files: true}, ""},
		{"-dry-run=false", "", std, ""},
		{"-subnet-file=", "", cleanup.Options{}, "subnet-file"},
		{"-etcd-endpoints=x", "", cleanup.Options{}, "unknown flag -etcd-endpoints=x"},
		{"flannel.1", "", cleanup.Options{}, `unexpected argument "flannel.1"`},
		{"-dry-run true", "", cleanup.Options{}, `unexpected argument "true"`},
	} {
		var got cleanup.Options
		command := cleanupCommand(&invocation{env: strings.Fields(c.env)}, func(o cleanup.Options) error {
			got = o
			return nil
		})
		command.SilenceErrors, command.SilenceUsage = true, true
		args, err := twoDashes(command.Flags(), strings.Fields(c.args), true)
		if err == nil {
			command.SetArgs(args)
			err = command.Execute()
		}
		if c.err == "" && (err != nil || got != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s with %s: %+v, %v", c.args, c.env, got, err)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), func() {}, []string{"cleanup", "-help"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "--dry-run") || errs.Len() > 0 {
		t.Errorf("help: exit code %d, %s%s", code, &out, &errs)
	}
	if code := run(t.Context(), func() {}, []string{"cleanup", "now"}, nil, &out, &errs); code != 2 || !strings.Contains(errs.String(), "flanneld cleanup --help") {
		t.Errorf("stray argument: exit code %d, %s", code, &errs)
	}
}
