package pkg

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// TestLogFieldsAreInTheTable checks that a field of a log line has one name everywhere: the README's
// table of log fields has every name that the code uses, and none that it does not use.
func TestLogFieldsAreInTheTable(t *testing.T) {
	table := readmeLogFields(t)
	daemon := slices.DeleteFunc(sources(t), func(s source) bool { return !isDaemon(s.room) })
	before := fieldsBefore(daemon)
	used := map[string]bool{}
	for _, s := range daemon {
		for _, e := range logFields(s.file, before) {
			name := literal(e)
			used[name] = true
			if !slices.Contains(table, name) {
				t.Errorf("%s: log field %q: must be a string literal from the table of log fields in README.md", s.at(e), name)
			}
		}
	}
	for _, name := range table {
		if !used[name] {
			t.Errorf("README.md: log field %q: no log line has it", name)
		}
	}
}

// TestLogMessagesAreConstant checks that messages can be searched for: what varies is in fields. A
// message starts with a lower-case word or an acronym, and has no full stop.
func TestLogMessagesAreConstant(t *testing.T) {
	inspect(t, isDaemon, func(s source, n ast.Node) {
		e := logMessage(n)
		text := literal(e)
		first, _, _ := strings.Cut(text, " ")
		if first != strings.ToLower(first) && first != strings.ToUpper(first) || strings.HasSuffix(text, ".") {
			t.Errorf("%s: message %q: must be a sentence in lower case without a full stop", s.at(e), text)
		}
		_, made := e.(*ast.BinaryExpr)
		if c, ok := e.(*ast.CallExpr); ok {
			pkg, _, _ := selector(c.Fun)
			made = pkg == "fmt"
		}
		if made {
			t.Errorf("%s: a message must be constant: what varies belongs into a field", s.at(e))
		}
	})
}

// logMessage returns the message if a node is a call of a logger, or if it is the text in a literal
// of a condition or a finding, which have fields of these names; else nil.
func logMessage(n ast.Node) ast.Expr {
	switch n := n.(type) {
	case *ast.CallExpr:
		sel, ok := n.Fun.(*ast.SelectorExpr)
		if !ok || !strings.EqualFold(lastName(sel.X), "log") && lastName(sel.X) != "l" {
			return nil
		}
		if i := fieldsBefore(nil)[sel.Sel.Name] - 1; i >= 0 && i < len(n.Args) {
			return n.Args[i]
		}
	case *ast.KeyValueExpr:
		if isIdent(n.Key, "Text") || isIdent(n.Key, "Ended") {
			return n.Value
		}
	}
	return nil
}

// isDaemon reports whether a room is part of the daemon's binary.
func isDaemon(room string) bool {
	return !isBed(room) && room != "cmd/flannel-lab" && room != "registry/registrytest"
}

// readmeLogFields returns the names in the first column of the README's table of log fields.
func readmeLogFields(t *testing.T) (names []string) {
	t.Helper()
	for _, row := range readmeTable(t, "Log field") {
		for _, name := range quoted(row[0]) {
			if slices.Contains(names, name) {
				t.Errorf("README.md: log field %q is in the table twice", name)
			}
			names = append(names, name)
		}
	}
	return names
}

// fieldsBefore returns how many arguments precede the log fields in calls of a function, by its
// name: of a logger's methods, and of functions that pass fields on to them.
func fieldsBefore(daemon []source) map[string]int {
	before := map[string]int{
		"With": 0, "Debug": 1, "Info": 1, "Warn": 1, "Error": 1,
		"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2, "Log": 3,
	}
	for _, s := range daemon {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Type.Params.NumFields() == 0 {
				continue
			}
			last := f.Type.Params.List[len(f.Type.Params.List)-1]
			if list, ok := last.Type.(*ast.Ellipsis); ok && isIdent(list.Elt, "any") && last.Names[0].Name == "fields" {
				before[f.Name.Name] = f.Type.Params.NumFields() - 1
			}
		}
	}
	return before
}

// logFields returns the expressions that name fields: in calls, in []any literals, which hold the
// fields of a condition, and in what is appended to a slice named fields.
func logFields(file *ast.File, before map[string]int) (names []ast.Expr) {
	pairs := func(args []ast.Expr) {
		for i := 0; i < len(args); i += 2 {
			names = append(names, args[i])
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if a, ok := n.Type.(*ast.ArrayType); ok && isIdent(a.Elt, "any") {
				pairs(n.Elts)
			}
		case *ast.CallExpr:
			args := n.Args
			if n.Ellipsis.IsValid() { // the names are where the slice is made
				args = args[:len(args)-1]
			}
			if skip := argumentsBefore(n, before); skip >= 0 && skip < len(args) {
				pairs(args[skip:])
			}
		}
		return true
	})
	return names
}

// argumentsBefore returns how many arguments of a call precede log fields, or -1 if it has no fields.
func argumentsBefore(c *ast.CallExpr, before map[string]int) int {
	name := lastName(c.Fun)
	pkg, _, _ := selector(c.Fun)
	switch skip, ok := before[name]; {
	case pkg == "status": // a gRPC error
		return -1
	case ok:
		return skip
	case name == "append" && strings.EqualFold(lastName(c.Args[0]), "fields"):
		return 1
	case len(c.Args) > 1 && literal(c.Args[0]) != "" && (pkg == "slog" || name == "Add"): // of slog.Attr, slog.Record
		return 0
	}
	return -1
}

// lastName returns the identifier that an expression such as f.cfg.Log ends with.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// TestDocCommentsStartWithTheName checks Go's convention for the comments of exported identifiers,
// test beds included (https://go.dev/doc/comment): the comment starts with the name, after an
// article at most.
func TestDocCommentsStartWithTheName(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			for _, c := range docComments(d) {
				words := strings.FieldsFunc(c.doc.Text(), func(r rune) bool { return r == ' ' || r == '\n' || r == ',' })
				if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
					words = words[1:]
				}
				if len(words) == 0 || words[0] != c.name {
					t.Errorf("%s: comment of %s: must start with its name", s.at(c.doc), c.name)
				}
			}
		}
	}
}

// docComment is the comment of an exported identifier.
type docComment struct {
	name string
	doc  *ast.CommentGroup
}

// docComments returns the comments of a declaration's exported identifiers. The comment above a
// group in parentheses is about all of its members, so that it starts with none of their names.
func docComments(d ast.Decl) (all []docComment) {
	add := func(id *ast.Ident, doc *ast.CommentGroup) {
		if id.IsExported() && doc != nil {
			all = append(all, docComment{id.Name, doc})
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		add(d.Name, d.Doc)
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			var id *ast.Ident
			var doc *ast.CommentGroup
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				id, doc = spec.Name, spec.Doc
			case *ast.ValueSpec:
				id, doc = spec.Names[0], spec.Doc
			default:
				continue
			}
			if !d.Lparen.IsValid() {
				doc = d.Doc
			}
			add(id, doc)
		}
	}
	return all
}

// TestDocCommentsReturnAndReport checks Go's verbs in the comments of functions: one with a result
// returns something, or reports whether something is true. It neither gives nor tells.
func TestDocCommentsReturnAndReport(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Doc == nil || !hasResult(f) {
				continue
			}
			words := strings.Fields(f.Doc.Text())
			if len(words) > 2 && slices.Contains([]string{"gives", "tells"}, words[1]) && words[2] != "up" {
				t.Errorf("%s: %s %s: must be \"returns\" or \"reports whether\"", s.at(f.Doc), words[0], words[1])
			}
		}
	}
}

// hasResult reports whether a function has a result other than an error.
func hasResult(f *ast.FuncDecl) bool {
	results := f.Type.Results
	return results != nil && (results.NumFields() > 1 || !isIdent(results.List[0].Type, "error"))
}
