package main

import (
	"embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/cmd/build"
	"lode/sdk"
)

// templates holds one folder for each language and kind, LANG-KIND. NAME in a
// file is replaced, and CLASS by the name as that of a class; a file's suffix .tmpl is dropped. The file .next is what
// to type afterwards.
//
//go:embed all:templates
var templates embed.FS

var (
	languages = []string{"go", "js", "ts", "c"}
	kinds     = []string{"function", "agent", "job", "app"}
)

func (c *cli) newCmd() *cobra.Command {
	var lang, kind string
	cmd := &cobra.Command{
		Use: "new NAME", Short: "Make a folder with a first function, agent, job or app", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := args[0]
			name, err := lode.ParseName(filepath.Base(dir))
			if err != nil {
				return err
			}
			if err := checkTemplate(lang, kind); err != nil {
				return err
			}
			next, err := writeTemplate(dir, lang+"-"+kind, string(name))
			if err != nil {
				return err
			}
			if err := writeGoModule(dir, name); err != nil {
				return err
			}
			if err := writeTypes(dir, lang); err != nil {
				return err
			}
			c.say("%s", strings.TrimSpace(strings.ReplaceAll(next, "DIR", dir)))
			return nil
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "go", strings.Join(languages, ", "))
	cmd.Flags().StringVar(&kind, "kind", "function", strings.Join(kinds, ", "))
	return cmd
}

// writeGoModule lets editors and `go run .` find the SDK in each folder of Go
// code below dir. Building needs no go.mod.
func writeGoModule(dir string, name lode.Name) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		mod := filepath.Join(filepath.Dir(path), "go.mod")
		if _, err := os.Stat(mod); err == nil {
			return nil
		}
		text, err := build.GoModule(name, "")
		if err != nil {
			return err
		}
		return os.WriteFile(mod, []byte(text), 0o644)
	})
}

// writeTypes lets editors know what TypeScript imports. Building needs none.
func writeTypes(dir, lang string) error {
	if lang != "ts" {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "lode.d.ts"), []byte(sdk.Types()), 0o644)
}

func checkTemplate(lang, kind string) error {
	switch lang {
	case "py", "python":
		return lode.Errorf(lode.Invalid, "this version of Lode has no Python yet").WithHint("languages: %s", strings.Join(languages, ", "))
	case "rust":
		return lode.Errorf(lode.Invalid, "this version of Lode makes no Rust folders yet").WithHint("build for wasm32-wasip1 yourself and deploy the .wasm")
	}
	if kind == "agent" && lang == "c" {
		return lode.Errorf(lode.Invalid, "there is no template of an agent in C").WithHint("--lang go, js or ts")
	}
	for _, w := range []struct {
		flag, word string
		of         []string
	}{{"--lang", lang, languages}, {"--kind", kind, kinds}} {
		if !slices.Contains(w.of, w.word) {
			e := lode.Errorf(lode.Invalid, "%s %s: want one of %s", w.flag, w.word, strings.Join(w.of, ", "))
			if near := lode.Suggest(w.word, w.of); near != "" {
				e.WithHint("did you mean %s %s?", w.flag, near)
			}
			return e
		}
	}
	return nil
}

// className is a name as that of a class: my-cart is MyCart.
func className(name string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(name, "-") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}

// writeTemplate makes a folder that was not there, or was empty, and returns
// what to type next.
func writeTemplate(dir, template, name string) (next string, err error) {
	if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
		return "", lode.Errorf(lode.Conflict, "%s is there already, and not empty", dir).WithHint("choose another name")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", lode.Errorf(lode.Invalid, "%w", err)
	}
	root := "templates/" + template
	err = fs.WalkDir(templates, root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(path, root), "/"), ".tmpl")
		to := filepath.Join(dir, filepath.FromSlash(rel))
		if e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		b, err := fs.ReadFile(templates, path)
		if err != nil {
			return err
		}
		text := strings.NewReplacer("NAME", name, "CLASS", className(name)).Replace(string(b))
		if rel == ".next" {
			next = text
			return nil
		}
		return os.WriteFile(to, []byte(text), 0o644)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", lode.Errorf(lode.Invalid, "there is no template %s", strings.ReplaceAll(template, "-", ", "))
	}
	if err != nil {
		return "", lode.Errorf(lode.Invalid, "%w", err)
	}
	return next, nil
}
