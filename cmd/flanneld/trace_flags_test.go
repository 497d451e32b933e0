package main

import (
	"strings"
	"testing"
)

// TestBadArgumentsOfTrace are refused before anything is read.
func TestBadArgumentsOfTrace(t *testing.T) {
	for args, want := range map[string]string{
		"trace":                                          "SRC: must be the IPv4 address of a container",
		"trace 10.42.7.2":                                "DST: must be the IPv4 address of a container",
		"trace 10.42.7.2 x":                              `DST: "x": must be the IPv4 address of a container`,
		"trace fd00::1 10.42.9.2":                        `SRC: "fd00::1": must be the IPv4 address`,
		"trace 127.0.0.1 10.42.9.2":                      `SRC: "127.0.0.1": must be the IPv4 address`,
		"trace 10.42.7.2 10.42.7.2":                      `DST: "10.42.7.2": must be another address than SRC`,
		"trace 10.42.7.2 10.42.9.2 10.42.9.3":            `unexpected argument "10.42.9.3": must be SRC DST`,
		"trace 10.42.7.2 10.42.9.2 -port=0":              `--port: "0": must be 1 to 65535`,
		"trace --port 65536 10.42.7.2 10.42.9.2":         `--port: "65536": must be 1 to 65535`,
		"trace --port=x 10.42.7.2 10.42.9.2":             "--port: ",
		"trace 10.42.7.2 10.42.9.2 -proto=sctp":          `--proto: "sctp": must be tcp, udp or icmp`,
		"trace 10.42.7.2 10.42.9.2 -proto icmp -port 80": `--port: "80": must be left out with --proto=icmp`,
		"trace 10.42.7.2 10.42.9.2 -peer-status=h2:9285": `--peer-status: "h2:9285": must be an IP address and a port`,
		"trace -etcd-api=v9 10.42.7.2 10.42.9.2":         `--etcd-api: "v9": must be auto, v2 or v3`,
	} {
		if out, errs, code := said(t, strings.Fields(args)...); code != traceUsage || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d, %q, %q, want %q", args, code, out, errs, want)
		}
	}
}
