package build

import (
	"context"
	"path/filepath"
	"strings"

	"lode"
)

func (b *builder) entry() (string, error) { return "", nil }

func scriptKind(entry string) string {
	if strings.Contains(filepath.Ext(entry), "ts") {
		return "ts"
	}
	return "js"
}

func (b *builder) script(context.Context, string) (*Artifact, error) {
	return nil, lode.Errorf(lode.Unavailable, "not in this tree yet")
}
