// The Go function of the demo: it strikes words out.
package main

import (
	"context"
	"strings"

	"lode/sdk/go"
)

func main() { lode.Handle(censor) }

func censor(_ context.Context, text string) (string, error) {
	return strings.ReplaceAll(text, "free", "****"), nil
}
