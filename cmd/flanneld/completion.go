package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// newCompletion returns the command "flanneld completion".
func newCompletion(in *invocation) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", ValidArgs: []string{"bash", "zsh", "fish"}, Long: completionHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return strayArgument(args[1:])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			switch shell := strings.Join(args, ""); shell {
			case "bash":
				return root.GenBashCompletionV2(in.stdout, true)
			case "zsh":
				return root.GenZshCompletion(in.stdout)
			case "fish":
				return root.GenFishCompletion(in.stdout, true)
			default:
				return fmt.Errorf("shell: %q: must be bash, zsh or fish", shell)
			}
		},
	}
}

const completionHelp = `flanneld completion prints the script that completes the commands and flags of flanneld in a shell.
For this shell only, with bash (the package bash-completion must be installed):

  . <(flanneld completion bash)

For all shells of this host:

  bash: flanneld completion bash >/usr/share/bash-completion/completions/flanneld
  zsh:  flanneld completion zsh >/usr/share/zsh/site-functions/_flanneld
  fish: flanneld completion fish >/usr/share/fish/vendor_completions.d/flanneld.fish`

// complete answers a request of a completion script. The shell replaces the word by one of the
// answers only if they begin with it, and cobra knows flags with two dashes only. So a flag with one
// dash is completed as one with two, and the answers lose a dash.
func complete(root *cobra.Command, out io.Writer, args []string) error {
	last := len(args) - 1
	word := args[last]
	one := len(word) > 1 && word[0] == '-' && word[1] != '-'
	if !one {
		root.SetArgs(args)
		return root.Execute()
	}
	var answers bytes.Buffer
	root.SetOut(&answers)
	root.SetArgs(append(args[:last:last], "-"+word))
	err := root.Execute()
	for line := range strings.Lines(answers.String()) {
		if strings.HasPrefix(line, "--") {
			line = line[1:]
		}
		io.WriteString(out, line)
	}
	return err
}
