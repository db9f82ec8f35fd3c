package lode

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"reflect"
	"strconv"
	"strings"

	"lode/sdk/abi"
)

// Shard is the piece of a dataset that one map call works on.
type Shard struct {
	// Bytes are all bytes of the shard, laid into the guest's memory without
	// a copy where that is possible. They are valid during the call. Changing
	// them changes nothing outside.
	Bytes   []byte
	Index   int
	Dataset string
	Version int
	records string
	files   fileIndex
}

// fileIndex says where the files of a shard end, and what they are called.
type fileIndex struct {
	Names []string `json:"names"`
	Ends  []int64  `json:"ends"`
}

// Files yields the files of a shard of a dataset of files, each with its name.
// A shard of any other form is one file with the dataset's name.
func (s *Shard) Files() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		if s.records != "files" {
			yield(s.Dataset, s.Bytes)
			return
		}
		var from int64
		for i, name := range s.files.Names {
			end := s.files.Ends[i]
			if !yield(name, s.Bytes[from:end:end]) {
				return
			}
			from = end
		}
	}
}

// readIndex asks for the borders of the files.
func (s *Shard) readIndex(ctx context.Context) error {
	r, err := operate(ctx, abi.OpData, message{head: []pair{{":dataset", s.Dataset}, {":version", strconv.Itoa(s.Version)}, {":verb", "index"}, {":shard", strconv.Itoa(s.Index)}}})
	if err != nil {
		return fmt.Errorf("the file names of shard %d of %s: %w", s.Index, s.Dataset, err)
	}
	if err := decode(r.body, &s.files); err != nil {
		return fmt.Errorf("the file names of shard %d of %s: %w", s.Index, s.Dataset, err)
	}
	var from int64
	for _, end := range s.files.Ends {
		if end < from || end > int64(len(s.Bytes)) || len(s.files.Ends) != len(s.files.Names) {
			return fmt.Errorf("the file names of shard %d of %s do not fit its %d bytes", s.Index, s.Dataset, len(s.Bytes))
		}
		from = end
	}
	return nil
}

// Records yields the shard's records as slices of Bytes: lines and ndjson
// without their line end, csv with quoted newlines inside a record, fixed:N
// pieces of N bytes, files a file each; all bytes as one record for any other
// form.
func (s *Shard) Records() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if s.records == "files" {
			for _, b := range s.Files() {
				if !yield(b) {
					return
				}
			}
			return
		}
		rest := s.Bytes
		cut := cutter(s.records)
		for len(rest) > 0 {
			n, keep := cut(rest)
			if !yield(rest[:keep:keep]) {
				return
			}
			rest = rest[n:]
		}
	}
}

// cutter returns the function that finds the first record's length, with and
// without its end.
func cutter(form string) func(b []byte) (n, keep int) {
	switch {
	case form == "" || form == "lines" || form == "ndjson":
		return cutLine
	case form == "csv":
		return cutCSV
	case strings.HasPrefix(form, "fixed:"):
		size, err := strconv.Atoi(form[len("fixed:"):])
		if err == nil && size > 0 {
			return func(b []byte) (int, int) { return min(size, len(b)), min(size, len(b)) }
		}
	}
	return func(b []byte) (int, int) { return len(b), len(b) }
}

func cutLine(b []byte) (n, keep int) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return len(b), len(b)
	}
	if i > 0 && b[i-1] == '\r' {
		return i + 1, i - 1
	}
	return i + 1, i
}

// cutCSV ends a record at the first newline outside quotes (RFC 4180).
func cutCSV(b []byte) (n, keep int) {
	quoted := false
	for i, c := range b {
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\n' && !quoted:
			if i > 0 && b[i-1] == '\r' {
				return i + 1, i - 1
			}
			return i + 1, i
		}
	}
	return len(b), len(b)
}

// Job makes a pair of functions the default job: m runs once for each shard
// of a dataset, where the shard is; merge folds partial results, in any order
// and grouping, so it must be associative and commutative, and R's zero value
// its identity. Partial results travel as JSON, a []byte as it is.
func Job[R any](m func(ctx context.Context, s *Shard) (R, error), merge func(a, b R) R) {
	JobNamed("", m, merge)
}

// JobNamed is Job under a name, in a module with several.
func JobNamed[R any](name string, m func(ctx context.Context, s *Shard) (R, error), merge func(a, b R) R) {
	begin()
	if m == nil || merge == nil {
		exports.refuse(fmt.Errorf("lode.Job(%q): map and merge must both be given", name))
		return
	}
	exports.add(&exports.jobs, export{name: name, run: func(v *invocation) error {
		s, err := v.shard()
		if err != nil {
			return err
		}
		r, err := m(v, s)
		if err != nil {
			return err
		}
		if c, ok := any(r).(Counts); ok { // whoever merges sorts: no need to do it for each shard
			return v.port.respond(v, 200, []pair{{"content-type", "application/json"}}, c.appendUnsorted(nil))
		}
		return answer(v, r)
	}, native: nativeMerge(merge), merge: func(v *invocation) error {
		body, err := v.body()
		if err != nil {
			return err
		}
		a, b, err := partials[R](body)
		if err != nil {
			return err
		}
		return answer(v, merge(a, b))
	}})
}

// nativeMerge names the built-in reducer that does the same as merge, or "".
// The node then merges without the guest, at the speed of the machine.
func nativeMerge(merge any) string {
	f, ok := merge.(func(a, b Counts) Counts)
	if ok && reflect.ValueOf(f).Pointer() == reflect.ValueOf(Counts.Merge).Pointer() {
		return "merge"
	}
	return ""
}

// partials splits a merge body: u32 length of a, a, b.
func partials[R any](body []byte) (a, b R, err error) {
	if len(body) < 4 || uint64(binary.LittleEndian.Uint32(body)) > uint64(len(body)-4) {
		return a, b, fmt.Errorf("a merge request of %d bytes is cut short", len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	if err = decodePartial(body[4:4+n:4+n], &a); err == nil {
		err = decodePartial(body[4+n:], &b)
	}
	return a, b, err
}

func decodePartial[R any](b []byte, r *R) error {
	if p, ok := any(r).(*[]byte); ok {
		*p = b
		return nil
	}
	if err := decode(b, r); err != nil {
		return fmt.Errorf("a partial result does not decode: %w", err)
	}
	return nil
}

// page is the granularity of windows.
const page = 64 << 10

// shard lays the invocation's shard into memory.
func (v *invocation) shard() (*Shard, error) {
	s := &Shard{Dataset: v.request.get(":dataset"), records: v.request.get(":records")}
	s.Index, _ = strconv.Atoi(v.request.get(":shard"))
	s.Version, _ = strconv.Atoi(v.request.get(":version"))
	size, err := strconv.ParseInt(v.request.get(":shard-bytes"), 10, 64)
	if err != nil || size < 0 {
		return nil, fmt.Errorf("the job names no shard size")
	}
	b := aligned(size)
	for at := int64(0); at < size; {
		n, err := v.port.window(at, b[at:])
		if err != nil {
			return nil, err
		}
		if n <= 0 || at+n < size && n%page != 0 {
			return nil, fmt.Errorf("shard %d ends after %d of %d bytes", s.Index, at+max(n, 0), size)
		}
		at += n
	}
	s.Bytes = b[:size:size]
	if s.records == "files" {
		if err := s.readIndex(v); err != nil {
			return nil, err
		}
	}
	return s, nil
}
