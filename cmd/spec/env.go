package spec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"lode"
)

// variables is where ${NAME} is looked up: the environment, then the env file.
func (o Options) variables(dir string) (func(string) (string, bool), error) {
	lookup := o.Lookup
	if lookup == nil {
		lookup = os.LookupEnv
	}
	file := o.EnvFile
	if file == "" {
		file = filepath.Join(dir, ".env")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		if o.EnvFile == "" && errors.Is(err, fs.ErrNotExist) {
			return lookup, nil
		}
		return nil, lode.Errorf(lode.Invalid, "%s: %s", file, reason(err)).WithHint("--env-file names a file with lines NAME=VALUE")
	}
	vars, err := ParseEnv(shown(file), b)
	if err != nil {
		return nil, err
	}
	return func(name string) (string, bool) {
		if v, ok := lookup(name); ok {
			return v, true
		}
		v, ok := vars[name]
		return v, ok
	}, nil
}

// ParseEnv reads lines NAME=VALUE. A line may begin with "export "; lines that
// begin with # and empty ones are skipped. A value in single quotes is taken
// as it stands; in double quotes \n, \t, \" and \\ are read; without quotes it
// ends before " #". file is for messages.
func ParseEnv(file string, b []byte) (map[string]string, error) {
	vars := map[string]string{}
	probs := &Problems{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name = strings.TrimSpace(name)
		if !ok || !envName.MatchString(name) {
			probs.List = append(probs.List, Problem{File: file, Line: n, Col: 1, Text: "this line is not NAME=VALUE", Hint: "a comment begins with #"})
			continue
		}
		v, err := unquote(strings.TrimSpace(value))
		if err != nil {
			probs.List = append(probs.List, Problem{File: file, Line: n, Col: len(name) + 2, Text: name + ": " + err.Error()})
			continue
		}
		vars[name] = v
	}
	if len(probs.List) > maxProblems {
		probs.List, probs.More = probs.List[:maxProblems], len(probs.List)-maxProblems
	}
	return vars, probs.asError()
}

func unquote(s string) (string, error) {
	if s == "" || s[0] != '"' && s[0] != '\'' {
		if i := strings.Index(s, " #"); i >= 0 {
			s = strings.TrimSpace(s[:i])
		}
		return s, nil
	}
	quote := s[0]
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == quote:
			if rest := strings.TrimSpace(s[i+1:]); rest != "" && rest[0] != '#' {
				return "", wrong("", "there is more behind the closing quote")
			}
			return b.String(), nil
		case c == '\\' && quote == '"' && i+1 < len(s):
			i++
			switch s[i] {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			default:
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", wrong("", "the closing quote is missing")
}
