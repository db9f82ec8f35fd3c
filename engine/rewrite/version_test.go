package rewrite

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// TestVersion: who changes what the pass makes must count Version up, or nodes
// go on with code that the old pass made.
func TestVersion(t *testing.T) {
	const version, want = 1, "a457ddc2f3e3e521"
	h := sha256.New()
	random := rand.NewChaCha8([32]byte{1})
	for range 50 {
		choice := make([]byte, 400)
		random.Read(choice)
		m, err := Rewrite(generate(choice), Options{})
		if err != nil {
			t.Fatal(err)
		}
		h.Write(m.Wasm)
	}
	if got := hex.EncodeToString(h.Sum(nil)[:8]); got != want || version != Version {
		t.Errorf("version %d makes %s; this test knows version %d, %s: count Version up when the output is another, then put both here", Version, got, version, want)
	}
}
