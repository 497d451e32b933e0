package main

import (
	_ "embed"
	"io"

	"github.com/spf13/cobra"
)

// manual is the manual page, in the format of mdoc(7).
//
//go:embed flanneld.8
var manual string

// newMan returns the command "flanneld man".
func newMan(in *invocation) *cobra.Command {
	return &cobra.Command{
		Use: "man", Args: onlyFlags, Long: manHelp,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(in.stdout, manual)
			return err
		},
	}
}

const manHelp = `flanneld man prints the manual page. To read it, or to install it:

  flanneld man | man -l -
  flanneld man >/usr/local/share/man/man8/flanneld.8`
