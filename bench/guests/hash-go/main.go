// The Go guest of bench invoke: it reads the body, hashes it, writes a line.
package main

import (
	"context"
	"encoding/hex"
	"hash/fnv"

	"lode/sdk/go"
)

// variant makes modules differ where a bench needs many; see variantMark.
var variant = []byte("LODE-VARIANT-00000000")

func main() { lode.Handle(hash) }

func hash(_ context.Context, body []byte) ([]byte, error) {
	if len(body) == 1<<30 {
		return variant, nil
	}
	h := fnv.New32a()
	h.Write(body)
	return append(hex.AppendEncode(nil, h.Sum(nil)), '\n'), nil
}
