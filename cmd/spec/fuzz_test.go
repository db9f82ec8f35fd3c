package spec

import (
	"errors"
	"testing"

	"lode"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{large, "", "a", "[]", "---\n---\n", "functions: {a: &a {env: {<<: *a}}}", "functions: {a: {schedule: [{cron: '* * * * *'}]}}",
		"functions: {a: {route: 'GET /{x}/{x}'}}", "\x00", "? [a]\n: b", "app: !!binary x", "functions: {a: {egress: ['[::1']}}", "functions: {a: {schedule: '@every 1d'}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b, "/nowhere", func(string) (string, bool) { return "v", true })
		if err == nil {
			for n := range d.Functions {
				if _, err := lode.ParseName(string(n)); err != nil {
					t.Fatal(err)
				}
			}
			d.Sources()
			return
		}
		ps, ok := errors.AsType[*Problems](err)
		if !ok || len(ps.List) == 0 || len(ps.List) > maxProblems {
			t.Fatalf("%v", err)
		}
		for _, p := range ps.List {
			if p.Text == "" || p.Line < 0 {
				t.Fatalf("%+v", p)
			}
		}
	})
}

func FuzzParseEnv(f *testing.F) {
	f.Add([]byte("A=1\nexport B='x'\nC=\"\\"))
	f.Fuzz(func(t *testing.T, b []byte) { ParseEnv(".env", b) })
}
