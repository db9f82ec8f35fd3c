package abi_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"testing"

	"lode/sdk/abi"
	"lode/sdk/abi/vectors"
)

// part is one entry of a body; keys and values in hexadecimal.
type part struct {
	Key, Value string
	Found, Put bool
}

// decodeBody reads a body of a form, and writes it again.
func decodeBody(form string, raw []byte) (parts []part, again []byte, err error) {
	x := hex.EncodeToString
	again = abi.AppendCount(nil, 0)
	switch form {
	case "keys":
		err = abi.DecodeKeys(raw, func(k []byte) {
			parts, again = append(parts, part{Key: x(k)}), abi.AppendKey(again, string(k))
		})
	case "found":
		err = abi.DecodeFound(raw, func(v []byte, found bool) {
			parts, again = append(parts, part{Value: x(v), Found: found}), abi.AppendFound(again, v, found)
		})
	case "write":
		err = abi.DecodeWrite(raw, func(k, v []byte, del bool) {
			parts = append(parts, part{Key: x(k), Value: x(v), Put: !del})
			if del {
				again = abi.AppendDelete(again, string(k))
			} else {
				again = abi.AppendPut(again, string(k), v)
			}
		})
	case "list":
		err = abi.DecodeList(raw, func(k, v []byte) {
			parts, again = append(parts, part{Key: x(k), Value: x(v)}), abi.AppendEntry(again, string(k), v)
		})
	}
	abi.SetCount(again, len(parts))
	return parts, again, err
}

func TestBodies(t *testing.T) {
	var list []struct {
		Form, Name, Bytes string
		Entries           []part
		Malformed         bool
	}
	if err := json.Unmarshal(vectors.Bodies, &list); err != nil || len(list) == 0 {
		t.Fatal(err)
	}
	for _, v := range list {
		t.Run(v.Form+" "+v.Name, func(t *testing.T) {
			raw, _ := hex.DecodeString(v.Bytes)
			got, again, err := decodeBody(v.Form, raw)
			if v.Malformed {
				if err == nil {
					t.Fatal("decoded")
				}
				return
			}
			if err != nil || len(got) != len(v.Entries) || !bytes.Equal(again, raw) {
				t.Fatalf("%v %v, again %x", err, got, again)
			}
			for i := range got {
				if got[i] != v.Entries[i] {
					t.Errorf("%+v, want %+v", got[i], v.Entries[i])
				}
			}
		})
	}
}

func FuzzBodies(f *testing.F) {
	var list []struct{ Bytes string }
	if err := json.Unmarshal(vectors.Bodies, &list); err != nil {
		f.Fatal(err)
	}
	for _, v := range list {
		raw, _ := hex.DecodeString(v.Bytes)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, form := range []string{"keys", "found", "write", "list"} {
			if _, again, err := decodeBody(form, raw); err == nil && !bytes.Equal(again, raw) {
				t.Errorf("%s: %x became %x", form, raw, again)
			}
		}
	})
}
