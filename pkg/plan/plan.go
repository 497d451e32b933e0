// Package plan is the document of /plan and of "flanneld plan": what flanneld would change now, as
// operations with the commands that make the same changes.
//
// It computes nothing about the network; package daemon does. Invariant: the text of a document is
// a script for a shell, in which everything but commands is a comment.
package plan

import (
	"iter"
	"strings"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/status"
)

// Version is the version of the document. Fields keep their names and meaning as long as it is the
// same; there may be more of them.
const Version = 1

// Document is what would be changed.
type Document struct {
	Version    int         `json:"version"`
	Operations []Operation `json:"operations"` // in order
	Notes      []string    `json:"notes"`      // what is left as it is, and why
	Unknown    []string    `json:"unknown"`    // what could not be found out; then there may be more operations
}

// Operation is one change of one object.
type Operation struct {
	Kind   string `json:"kind"`   // such as "route", "rule" or "lease"
	Verb   string `json:"verb"`   // such as "replace", "add" or "delete"
	Object string `json:"object"` // the object's name, with its kind
	// Command makes the change, pasted into a shell; it is empty if no command can, because the
	// object is inside flanneld.
	Command string `json:"command"`
}

// New returns a document without operations.
func New() Document {
	return Document{Version: Version, Operations: []Operation{}, Notes: []string{}, Unknown: []string{}}
}

// AddOps adds operations on kernel objects.
func (d *Document) AddOps(ops iter.Seq[dataplane.Op]) {
	for op := range ops {
		o := Operation{Kind: op.Kind.String(), Verb: op.Verb.String(), Object: op.Object()}
		if op.Kind != dataplane.KindTunnel {
			o.Command = op.String()
		}
		d.Operations = append(d.Operations, o)
	}
}

// AddChanges adds changes of the packet filter.
func (d *Document) AddChanges(changes []firewall.Change) {
	for _, c := range changes {
		d.Operations = append(d.Operations, Operation(c))
	}
}

// Note adds a note.
func (d *Document) Note(text string) { d.Notes = append(d.Notes, text) }

// Failed adds what could not be found out, unless err is nil.
func (d *Document) Failed(what string, err error) {
	if err != nil {
		d.Unknown = append(d.Unknown, what+": "+status.Line(err))
	}
}

// Text returns the document as a script, empty if there is nothing to say.
func (d Document) Text() string {
	var b strings.Builder
	comment := func(prefix, text string) { b.WriteString("# " + prefix + status.Clean(text) + "\n") }
	for _, o := range d.Operations {
		if o.Command == "" {
			comment("flanneld itself: ", o.Verb+" "+o.Object)
		} else {
			b.WriteString(o.Command + "\n")
		}
	}
	for _, n := range d.Notes {
		comment("note: ", n)
	}
	for _, u := range d.Unknown {
		comment("unknown: ", u)
	}
	return b.String()
}
