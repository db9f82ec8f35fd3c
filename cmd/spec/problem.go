package spec

import (
	"fmt"
	"strings"

	"lode"
)

// maxProblems is how many mistakes are told at once.
const maxProblems = 20

// Problem is one mistake, where it is, and what to do about it.
type Problem struct {
	File      string `json:"file"`
	Line, Col int    // from 1; 0: the whole file
	Text      string `json:"text"`
	Hint      string `json:"hint,omitempty"`
}

// String is "lode.yaml:3:5: what is wrong".
func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.Text)
}

// Problems is all that is wrong with a file, in the order of its lines.
type Problems struct {
	List []Problem
	More int // that are not in List
}

// Error is every problem on its own line, each with its hint behind it.
func (p *Problems) Error() string {
	var b strings.Builder
	for i, q := range p.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(q.String())
		if q.Hint != "" && len(p.List) > 1 {
			b.WriteString(" (" + q.Hint + ")")
		}
	}
	if p.More > 0 {
		fmt.Fprintf(&b, "\nand %d more", p.More)
	}
	return b.String()
}

// asError is p as the error at the border of the package.
func (p *Problems) asError() error {
	if len(p.List) == 0 {
		return nil
	}
	e := &lode.Error{Kind: lode.Invalid, Detail: p.Error(), Err: p}
	if len(p.List) == 1 {
		e.Hint = p.List[0].Hint
	}
	return e
}

// mistake is a wrong value, before it is known where it stands.
type mistake struct{ text, hint string }

func (m *mistake) Error() string { return m.text }

func wrong(hint, format string, args ...any) error {
	return &mistake{fmt.Sprintf(format, args...), hint}
}
