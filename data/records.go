package data

import (
	"bytes"
	"iter"
	"path"
	"strconv"
	"strings"

	"lode"
)

// MaxRecord is the most bytes of one record, its end included, and so of one
// shard.
const MaxRecord = 64 << 20

// ParseRecords checks a record form. The forms, as they lie in a shard:
//
//	lines    ends with \n; a missing one at a file's end is added, so that the
//	         records of two files never join. A \r before it is kept in the
//	         shard and is no part of the record that Records yields.
//	csv      the same, where a \n behind an odd number of quotes does not end
//	         the record (RFC 4180). Each file begins with the same header,
//	         which is kept in the manifest and in no shard. A byte order mark
//	         at a file's begin is dropped.
//	ndjson   the same as lines; each is one JSON value. Blank lines and a byte
//	         order mark are dropped.
//	fixed:N  N bytes, no end; a file's size must be a multiple of N.
//	files    a whole file, no end; borders and names are in the shard's index.
func ParseRecords(s string) (lode.Records, error) {
	r := lode.Records(s)
	_, err := formOf(r)
	return r, err
}

// DetectRecords picks a form by a file's suffix: csv, ndjson, else lines.
func DetectRecords(name string) lode.Records {
	switch strings.ToLower(path.Ext(name)) {
	case ".csv":
		return lode.RecordsCSV
	case ".ndjson", ".jsonl":
		return lode.RecordsNDJSON
	}
	return lode.RecordsLines
}

// form is a parsed record form.
type form struct {
	kind lode.Records // fixed without its number
	size int          // only fixed
}

const fixed = lode.Records("fixed")

func formOf(r lode.Records) (form, error) {
	switch r {
	case lode.RecordsLines, lode.RecordsCSV, lode.RecordsNDJSON, lode.RecordsFiles:
		return form{kind: r}, nil
	}
	if n, ok := strings.CutPrefix(string(r), "fixed:"); ok {
		size, err := strconv.Atoi(n)
		if err != nil || size < 1 || size > MaxRecord || strconv.Itoa(size) != n {
			return form{}, lode.Errorf(lode.Invalid, "record form %q: want fixed:N with N from 1 to %d bytes", r, MaxRecord)
		}
		return form{fixed, size}, nil
	}
	e := lode.Errorf(lode.Invalid, "%q is not a record form: want lines, csv, ndjson, files or fixed:N", r)
	if near := lode.Suggest(string(r), []string{"lines", "csv", "ndjson", "files"}); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return form{}, e
}

// hasLines reports whether records end with a newline.
func (f form) hasLines() bool {
	return f.kind == lode.RecordsLines || f.kind == lode.RecordsCSV || f.kind == lode.RecordsNDJSON
}

// cutter finds where records end. It remembers what it has searched of an
// unfinished record, so feeding it more bytes costs each byte once.
type cutter struct {
	form
	searched int  // bytes of the unfinished record
	odd      bool // csv: an odd number of quotes among them
	lines    int  // newlines in the record, its end included
}

// next returns the length of the first record of b, its end included, or 0 if
// b does not hold its end; then the next call must give the same bytes again
// with more behind them. A whole file never ends before its file does.
func (c *cutter) next(b []byte) int {
	if c.searched == 0 {
		c.lines = 0
	}
	switch c.kind {
	case fixed:
		if len(b) < c.size {
			return 0
		}
		return c.size
	case lode.RecordsFiles:
		return 0
	}
	for {
		rest := b[c.searched:]
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			c.searched = len(b)
			c.quotes(rest)
			return 0
		}
		c.searched += i + 1
		c.lines++
		c.quotes(rest[:i])
		if !c.odd {
			n := c.searched
			c.searched = 0
			return n
		}
	}
}

func (c *cutter) quotes(b []byte) {
	if c.kind == lode.RecordsCSV && bytes.Count(b, []byte{'"'})&1 == 1 {
		c.odd = !c.odd
	}
}

// reset forgets the unfinished record.
func (c *cutter) reset() { c.searched, c.odd, c.lines = 0, false, 0 }

// Records yields the records of a shard as slices of it, without their ends:
// lines, csv and ndjson without \n and a \r before it, fixed:N pieces of N
// bytes. For files and for a form that is not known it yields all bytes as
// one; see Files.
func Records(shard []byte, r lode.Records) iter.Seq[[]byte] {
	f, err := formOf(r)
	if err != nil || f.kind == lode.RecordsFiles {
		return func(yield func([]byte) bool) {
			if len(shard) > 0 {
				yield(shard)
			}
		}
	}
	return func(yield func([]byte) bool) {
		c := cutter{form: f}
		for b := shard; len(b) > 0; {
			n := c.next(b)
			if n == 0 {
				n = len(b) // a shard that data did not write
			}
			rec := b[:n]
			if f.hasLines() {
				rec = trimEnd(rec)
			}
			if !yield(rec[:len(rec):len(rec)]) {
				return
			}
			b = b[n:]
		}
	}
}

// trimEnd drops one \n and one \r before it.
func trimEnd(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
		if n > 1 && b[n-2] == '\r' {
			b = b[:n-2]
		}
	}
	return b
}

// Files yields name and content of the files in a shard of form files.
func Files(shard []byte, idx lode.FileIndex) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		begin := int64(0)
		for i, end := range idx.Ends {
			if !yield(idx.Names[i], shard[begin:end:end]) {
				return
			}
			begin = end
		}
	}
}

// checkIndex reports an index that does not describe n bytes.
func checkIndex(idx lode.FileIndex, n int64) error {
	last := int64(0)
	for _, end := range idx.Ends {
		if end < last {
			return lode.Errorf(lode.Damaged, "a file index goes backwards at offset %d", end)
		}
		last = end
	}
	if last != n || len(idx.Names) != len(idx.Ends) {
		return lode.Errorf(lode.Damaged, "a file index of %d names and %d ends describes %d bytes, not %d", len(idx.Names), len(idx.Ends), last, n)
	}
	return nil
}
