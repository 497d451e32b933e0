package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
				io.WriteString(in.stdout, bashFallback)
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
For this shell only, with bash:

  . <(flanneld completion bash)

For all shells of this host:

  bash: flanneld completion bash >/usr/share/bash-completion/completions/flanneld
  zsh:  flanneld completion zsh >/usr/share/zsh/site-functions/_flanneld
  fish: flanneld completion fish >/usr/share/fish/vendor_completions.d/flanneld.fish`

// complete answers a request of a completion script: args are its words, the last of which is
// incomplete. Cobra knows flags with two dashes only, and the shell takes only answers that begin
// with the word. So flags with one dash are completed as those with two, and the answers lose a dash.
func complete(root *cobra.Command, out io.Writer, args []string) error {
	args = slices.Clone(args)
	one := false // the incomplete word has one dash
	for i, a := range args {
		if one = len(a) > 1 && a[0] == '-' && a[1] != '-'; one {
			args[i] = "-" + a
		}
	}
	var answers bytes.Buffer
	root.SetOut(&answers)
	root.SetArgs(args)
	err := root.Execute()
	for line := range strings.Lines(answers.String()) {
		if one && strings.HasPrefix(line, "--") {
			line = line[1:]
		}
		io.WriteString(out, strings.ReplaceAll(line, "`", "")) // which mark the name of a flag's value
	}
	return err
}

// completeValues defines the completions of values of flags, which are names of files only if the
// help calls them so.
func completeValues(c *cobra.Command) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		var values func() []string
		switch kind, _ := pflag.UnquoteUsage(f); {
		case kind == "file":
			return
		case f.Name == "etcd-api":
			values = func() []string { return []string{"auto", "v2", "v3"} }
		case f.Name == "proto":
			values = func() []string { return []string{"icmp", "tcp", "udp"} }
		case f.Name == "iface":
			values = interfaces
		default:
			values = func() []string { return nil }
		}
		_ = c.RegisterFlagCompletionFunc(f.Name, func(_ *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
			fits := slices.DeleteFunc(values(), func(v string) bool { return !strings.HasPrefix(v, begin) })
			return fits, cobra.ShellCompDirectiveNoFileComp
		}) // fails only if the flag does not exist
	})
}

// interfaces returns the names of this host's interfaces.
func interfaces() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

// bashFallback replaces the two functions of the package bash-completion that cobra's script uses,
// for hosts without the package. Bash splits words at "=" and ":"; the first one joins them again.
const bashFallback = `declare -F _get_comp_words_by_ref >/dev/null || _get_comp_words_by_ref() {
    local i last
    words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        last=$((${#words[@]} - 1))
        if ((i > 1)) && [[ ${COMP_WORDS[i]} == [=:]* || ${words[last]} == *[=:] ]]; then
            words[last]+=${COMP_WORDS[i]}
        else
            words+=("${COMP_WORDS[i]}")
        fi
    done
    cword=$((${#words[@]} - 1))
    cur=${words[cword]} prev=${words[cword-1]}
}
declare -F __ltrim_colon_completions >/dev/null || __ltrim_colon_completions() { :; }

`
