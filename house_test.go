package lode_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHouse keeps the habits of the house: every package says what it is for,
// no file is over 800 lines, no folder is a grab-bag.
func TestHouse(t *testing.T) {
	const most = 800
	banned := map[string]bool{"pkg": true, "util": true, "utils": true, "common": true, "models": true, "types": true, "manager": true, "helpers": true, "misc": true}
	doc, seen := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != "." && (strings.ContainsAny(d.Name()[:1], "._") || d.Name() == "node_modules") {
				return filepath.SkipDir
			}
			if banned[d.Name()] {
				t.Errorf("%s: a folder is a noun that says what it holds", path)
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".js", ".ts", ".c", ".h", ".sh":
		default:
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(src), "\n"); n > most && !generated(src) {
			t.Errorf("%s has %d lines; at most %d", path, n, most)
		}
		if filepath.Ext(path) != ".go" || strings.Contains(path, "testdata") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		if !strings.HasSuffix(path, "_test.go") {
			seen[dir] = true
			doc[dir] = doc[dir] || saysWhatFor(f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range seen {
		if !doc[dir] {
			t.Errorf("package %s has no package comment that says what it is for", dir)
		}
	}
}

// TestWordsOfTheBus keeps the words of NATS inside bus: nobody else imports it.
func TestWordsOfTheBus(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.ContainsAny(d.Name()[:1], "._") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasPrefix(path, "bus"+string(filepath.Separator)) {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			if strings.Contains(imp.Path.Value, "nats-io/") {
				t.Errorf("%s imports %s: only bus may", path, imp.Path.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func saysWhatFor(f *ast.File) bool {
	return f.Doc != nil && len(strings.Fields(f.Doc.Text())) >= 8
}

func generated(src []byte) bool {
	first, _, _ := strings.Cut(string(src), "\n")
	return strings.Contains(first, "Code generated") || strings.Contains(first, "DO NOT EDIT")
}
