package replica

import (
	"encoding/binary"
	"time"

	"lode"
	"lode/store"
)

// The methods of the link.
const (
	methodPut    = "blob.put"
	methodGet    = "blob.get"
	methodHave   = "blob.have"
	methodStat   = "blob.stat"
	methodDelete = "blob.delete"
	methodList   = "blob.list"
	methodBad    = "blob.bad"
)

// Methods are the methods of a link that Serve answers.
func Methods() []string {
	return []string{methodPut, methodGet, methodHave, methodStat, methodDelete, methodList, methodBad}
}

const (
	maxName    = 32   // bytes of a store's name
	maxQueries = 1024 // in one blob.have: 40 KiB, one frame
	querySize  = 32 + 8
	infoSize   = 32 + 8 + 8

	flagRepair = 1
	flagOffer  = 2
	flagVerify = 1

	stateSend = 0
	stateDone = 1
)

// request is a parsed head of any method; fields that the method does not have
// are zero.
type request struct {
	store    string
	digest   lode.Digest
	size     int64
	modified time.Time // of blob.delete: before
	flags    byte
}

// fields say what follows the store's name.
type fields struct{ digest, size, modified, flags bool }

var layouts = [...]struct {
	method string
	fields fields
}{
	{methodPut, fields{true, true, true, true}},
	{methodGet, fields{digest: true}},
	{methodHave, fields{flags: true}},
	{methodStat, fields{digest: true}},
	{methodDelete, fields{digest: true, modified: true}},
	{methodList, fields{}},
	{methodBad, fields{digest: true}},
}

func layoutOf(method string) fields {
	for _, l := range layouts {
		if l.method == method {
			return l.fields
		}
	}
	return fields{}
}

func (f fields) bytes() (n int) {
	for _, part := range []struct {
		there bool
		bytes int
	}{{f.digest, 32}, {f.size, 8}, {f.modified, 8}, {f.flags, 1}} {
		if part.there {
			n += part.bytes
		}
	}
	return n
}

// appendRequest writes the head of a method.
func appendRequest(b []byte, method string, r request) []byte {
	f := layoutOf(method)
	b = append(b, byte(len(r.store)))
	b = append(b, r.store...)
	if f.digest {
		b = append(b, r.digest[:]...)
	}
	if f.size {
		b = binary.BigEndian.AppendUint64(b, uint64(r.size))
	}
	if f.modified {
		b = appendTime(b, r.modified)
	}
	if f.flags {
		b = append(b, r.flags)
	}
	return b
}

// parseRequest reads the head of a method.
func parseRequest(method string, b []byte) (request, error) {
	var r request
	f := layoutOf(method)
	if len(b) == 0 || b[0] == 0 || b[0] > maxName || len(b) != 1+int(b[0])+f.bytes() {
		return r, lode.Errorf(lode.Invalid, "the head of %s has %d bytes and does not add up", method, len(b))
	}
	r.store, b = string(b[1:1+b[0]]), b[1+b[0]:]
	if f.digest {
		r.digest, b = lode.Digest(b[:32]), b[32:]
	}
	if f.size {
		if r.size, b = int64(binary.BigEndian.Uint64(b)), b[8:]; r.size < 0 {
			return r, lode.Errorf(lode.Invalid, "a blob of a negative size")
		}
	}
	if f.modified {
		r.modified, b = parseTime(b), b[8:]
	}
	if f.flags {
		r.flags = b[0]
	}
	return r, nil
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixNano()))
}

// parseTime reads 8 bytes.
func parseTime(b []byte) time.Time {
	n := int64(binary.BigEndian.Uint64(b))
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// appendPlace writes size and modified.
func appendPlace(b []byte, info store.Info) []byte {
	return appendTime(binary.BigEndian.AppendUint64(b, uint64(info.Size)), info.Modified)
}

// parsePlace reads size and modified of d.
func parsePlace(d lode.Digest, b []byte) (store.Info, error) {
	if len(b) != 16 {
		return store.Info{}, lode.Errorf(lode.Invalid, "the description of a blob has %d bytes, not 16", len(b))
	}
	info := store.Info{Digest: d, Size: int64(binary.BigEndian.Uint64(b)), Modified: parseTime(b[8:])}
	if info.Size < 0 {
		return store.Info{}, lode.Errorf(lode.Invalid, "a blob of a negative size")
	}
	return info, nil
}

func appendInfo(b []byte, info store.Info) []byte {
	return appendPlace(append(b, info.Digest[:]...), info)
}

// parseInfo reads one record of a list.
func parseInfo(b []byte) (store.Info, error) {
	if len(b) != infoSize {
		return store.Info{}, lode.Errorf(lode.Invalid, "a record of a list has %d bytes, not %d", len(b), infoSize)
	}
	return parsePlace(lode.Digest(b[:32]), b[32:])
}

func appendQueries(b []byte, qs []store.Query) []byte {
	for _, q := range qs {
		b = appendTime(append(b, q.Digest[:]...), q.Modified)
	}
	return b
}

func parseQueries(b []byte) ([]store.Query, error) {
	if len(b) == 0 || len(b)%querySize != 0 || len(b)/querySize > maxQueries {
		return nil, lode.Errorf(lode.Invalid, "a question of %d bytes: want 1 to %d times %d", len(b), maxQueries, querySize)
	}
	qs := make([]store.Query, 0, len(b)/querySize)
	for ; len(b) > 0; b = b[querySize:] {
		qs = append(qs, store.Query{Digest: lode.Digest(b[:32]), Modified: parseTime(b[32:])})
	}
	return qs, nil
}

// parseHeld reads the answer to n queries.
func parseHeld(b []byte, n int) ([]store.Held, error) {
	if len(b) != n {
		return nil, lode.Errorf(lode.Invalid, "%d answers to %d questions", len(b), n)
	}
	out := make([]store.Held, n)
	for i, v := range b {
		if out[i] = store.Held(v); out[i] > store.HeldReplica {
			return nil, lode.Errorf(lode.Invalid, "an answer of %d", v)
		}
	}
	return out, nil
}
