package abi_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"testing"

	"lode/sdk/abi"
	"lode/sdk/abi/vectors"
)

func TestMessages(t *testing.T) {
	var list []struct {
		Name, Bytes, Body string
		Head              [][2]string
		Malformed         bool
	}
	if err := json.Unmarshal(vectors.Messages, &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		t.Run(v.Name, func(t *testing.T) {
			raw, err := hex.DecodeString(v.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			var head [][2]string
			body, err := abi.Decode(raw, func(k, x []byte) { head = append(head, [2]string{string(k), string(x)}) })
			if v.Malformed {
				if err == nil {
					t.Fatal("decoded")
				}
				return
			}
			if err != nil || len(head) != len(v.Head) || hex.EncodeToString(body) != v.Body {
				t.Fatalf("%v %v %x", err, head, body)
			}
			again := abi.AppendHead(nil, len(head))
			for i, p := range head {
				if p != v.Head[i] {
					t.Errorf("pair %d is %q", i, p)
				}
				again = abi.AppendPair(again, p[0], p[1])
			}
			if again = append(again, body...); !bytes.Equal(again, raw) {
				t.Errorf("encoded again: %x", again)
			}
		})
	}
}

func TestCompletions(t *testing.T) {
	var list []struct {
		Bytes              string
		ID, Status, Length uint32
		Malformed          bool
	}
	if err := json.Unmarshal(vectors.Completions, &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		raw, _ := hex.DecodeString(v.Bytes)
		c, ok := abi.DecodeCompletion(raw)
		if ok == v.Malformed {
			t.Errorf("%s: %v", v.Bytes, ok)
		}
		if ok && (c != abi.Completion{ID: v.ID, Status: abi.Status(v.Status), Length: v.Length} || !bytes.Equal(c.Append(nil), raw)) {
			t.Errorf("%s: %+v", v.Bytes, c)
		}
	}
}

func FuzzDecode(f *testing.F) {
	var list []struct{ Bytes string }
	if err := json.Unmarshal(vectors.Messages, &list); err != nil {
		f.Fatal(err)
	}
	for _, v := range list {
		raw, _ := hex.DecodeString(v.Bytes)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var pairs [][2][]byte
		body, err := abi.Decode(raw, func(k, v []byte) { pairs = append(pairs, [2][]byte{k, v}) })
		if err != nil {
			return
		}
		again := abi.AppendHead(nil, len(pairs))
		for _, p := range pairs {
			again = abi.AppendPair(again, string(p[0]), string(p[1]))
		}
		if !bytes.Equal(append(again, body...), raw) {
			t.Errorf("%x became %x", raw, again)
		}
	})
}
