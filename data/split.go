package data

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"golang.org/x/sync/errgroup"

	"lode"
	"lode/store"
)

// Progress says how far a put is.
type Progress struct {
	File    string `json:"file"`    // being read
	Files   int    `json:"files"`   // read to their end
	Bytes   int64  `json:"bytes"`   // read
	Records int64  `json:"records"` // found
	Shards  int    `json:"shards"`  // begun
}

// Uploads yields the files of a put, in order. Next returns io.EOF behind the
// last one; any other error is an upload cut short. A reader is valid until
// the next call of Next. size is in bytes, -1 if it is not known.
type Uploads interface {
	Next() (name string, size int64, r io.Reader, err error)
}

// splitter cuts files into shards as they stream by. It holds one unfinished
// record in memory, and writes at most two shards at once: one grows while the
// one before becomes durable.
type splitter struct {
	ctx      context.Context // of commits; ends with the first failure
	store    *store.Store
	target   int64
	cut      cutter
	progress func(Progress)
	header   []byte // csv, with its newline; nil before the first file
	done     Progress

	buf   []byte
	cur   *store.Writer // nil between shards
	count int64         // records in cur
	index lode.FileIndex
	begun int

	group *errgroup.Group
	mu    sync.Mutex
	out   []lode.Shard
}

// split reads all files into shards. After an error nothing refers to what was
// written.
func split(ctx context.Context, st *store.Store, f form, target int64, header []byte, in Uploads, progress func(Progress)) (*splitter, error) {
	s := &splitter{store: st, target: target, cut: cutter{form: f}, header: header, progress: progress, buf: make([]byte, 1<<20)}
	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.SetLimit(1)
	err := s.all(in)
	if s.cur != nil {
		s.cur.Abort()
	}
	if werr := s.group.Wait(); werr != nil {
		err = werr // the cause; what the loop saw is its cancelled context
	}
	if cerr := ended(ctx); cerr != nil && err != nil {
		err = cerr
	}
	return s, err
}

func (s *splitter) all(in Uploads) error {
	seen := map[string]bool{}
	for {
		name, size, r, err := in.Next()
		if err == io.EOF {
			return s.endShard()
		}
		if err != nil {
			return cutShort("the upload", err)
		}
		if s.cut.kind == lode.RecordsFiles {
			if !fs.ValidPath(name) || name == "." {
				return lode.Errorf(lode.Invalid, "file name %q is not a relative path", name).WithHint("put files from below the current folder")
			}
			if seen[name] {
				return lode.Errorf(lode.Invalid, "file %q is there twice", name)
			}
			seen[name] = true
			if size > MaxRecord {
				return s.tooLong(&at{name: name})
			}
		}
		if s.cut.kind == fixed && size > 0 && size%int64(s.cut.size) != 0 {
			return s.oddSize(name, size)
		}
		if err := s.file(name, size, r); err != nil {
			return err
		}
		s.done.Files++
		s.tell()
	}
}

// cutShort names what was being read when the other side failed.
func cutShort(what string, err error) error {
	if _, ok := errors.AsType[*lode.Error](err); ok {
		return err
	}
	return lode.Errorf(lode.Invalid, "%s was cut short: %w", what, err).WithHint("nothing was changed; put it again")
}

func (s *splitter) oddSize(name string, size int64) error {
	return lode.Errorf(lode.Invalid, "%s has %d bytes, which is no multiple of the record size %d", name, size, s.cut.size)
}

func (s *splitter) tell() {
	if s.progress != nil {
		s.done.Shards = s.begun
		s.progress(s.done)
	}
}

// at is a place in one file.
type at struct {
	name  string
	line  int // 1, 2, 3 ... of the next record
	first bool
}

func (p *at) String() string { return fmt.Sprintf("%s, line %d", p.name, p.line) }

// file reads one file. In buf, [begin:end] is what no record was cut from yet.
func (s *splitter) file(name string, size int64, r io.Reader) error {
	s.done.File = name
	s.cut.reset()
	pos := at{name, 1, true}
	begin, end, total := 0, 0, int64(0)
	for {
		if err := ended(s.ctx); err != nil {
			return err
		}
		if begin, end = s.makeRoom(begin, end); end-begin > MaxRecord {
			return s.tooLong(&pos)
		}
		n, err := r.Read(s.buf[end:])
		end += n
		total += int64(n)
		s.done.Bytes += int64(n)
		used, cerr := s.consume(s.buf[begin:end], &pos)
		if cerr != nil {
			return cerr
		}
		begin += used
		if n > 0 {
			s.tell()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return cutShort(name, err)
		}
	}
	if size >= 0 && total != size {
		return lode.Errorf(lode.Invalid, "%s was cut short: %d of %d bytes came", name, total, size).WithHint("nothing was changed; put it again")
	}
	return s.endFile(s.buf[begin:end], &pos, total)
}

func (s *splitter) tooLong(pos *at) error {
	e := lode.Errorf(lode.Invalid, "%s: a record has more than %d bytes", pos, MaxRecord)
	switch s.cut.kind {
	case lode.RecordsCSV:
		return e.WithHint("is a quote missing on that line?")
	case lode.RecordsFiles:
		return lode.Errorf(lode.Invalid, "%s has more than %d bytes, the most of one record", pos.name, MaxRecord).WithHint("put it as lines or fixed:N")
	}
	return e.WithHint("choose another record form, as fixed:N")
}

// makeRoom frees space behind end, by moving what is left to the front or by
// growing; the unfinished record keeps its bytes.
func (s *splitter) makeRoom(begin, end int) (int, int) {
	if begin == end {
		return 0, 0
	}
	if end < len(s.buf) {
		return begin, end
	}
	if begin < len(s.buf)/2 {
		bigger := make([]byte, min(2*len(s.buf), max(MaxRecord+1<<20, len(s.buf)+1<<20)))
		end = copy(bigger, s.buf[begin:end])
		s.buf = bigger
	} else {
		end = copy(s.buf, s.buf[begin:end])
	}
	return 0, end
}

// consume takes the whole records at the front of b and returns their bytes.
// Neighbours are written in one piece.
func (s *splitter) consume(b []byte, pos *at) (int, error) {
	run, off := 0, 0 // [run:off] goes to the current shard
	for off < len(b) {
		n := s.cut.next(b[off:])
		if n == 0 {
			break
		}
		if n > MaxRecord {
			return off, s.tooLong(pos)
		}
		skip, err := s.inspect(b[off:off+n], pos)
		if err != nil {
			return off, err
		}
		fits := s.fits(off-run, n-skip)
		if skip > 0 || !fits {
			if err := s.write(b[run:off]); err != nil {
				return off, err
			}
			run = off + skip
		}
		off += n
		if skip == n {
			continue // dropped
		}
		if !fits {
			if err := s.endShard(); err != nil {
				return off, err
			}
		}
		s.count++
		s.done.Records++
	}
	return off, s.write(b[run:off])
}

// fits reports whether a record of n bytes goes into the current shard behind
// pending ones. The first record of a shard always does.
func (s *splitter) fits(pending, n int) bool {
	if s.count == 0 {
		return true
	}
	size := int64(pending + n)
	if s.cur != nil {
		size += s.cur.Size()
	}
	return size <= s.target
}

// inspect checks one record and says how many bytes of its front are dropped:
// a byte order mark, a header, a blank line.
func (s *splitter) inspect(rec []byte, pos *at) (skip int, err error) {
	first, line := pos.first, pos.line
	pos.first = false
	pos.line += max(1, s.cut.lines)
	if first && (s.cut.kind == lode.RecordsCSV || s.cut.kind == lode.RecordsNDJSON) && bytes.HasPrefix(rec, []byte("\xef\xbb\xbf")) {
		skip = 3
	}
	switch s.cut.kind {
	case lode.RecordsCSV:
		if first {
			return len(rec), s.checkHeader(rec[skip:], pos.name)
		}
	case lode.RecordsNDJSON:
		body := bytes.TrimSpace(rec[skip:])
		if len(body) == 0 {
			return len(rec), nil
		}
		if !json.Valid(body) {
			return 0, lode.Errorf(lode.Invalid, "%s, line %d: not a JSON value: %.40q", pos.name, line, body).
				WithHint("ndjson wants one JSON value a line; use lines for plain text")
		}
	}
	return skip, nil
}

func (s *splitter) checkHeader(rec []byte, name string) error {
	header := append(bytes.Clone(trimEnd(rec)), '\n')
	if s.header == nil {
		s.header = header
	} else if !bytes.Equal(s.header, header) {
		return lode.Errorf(lode.Invalid, "%s has the header %.100q, not %.100q as before", name, trimEnd(header), trimEnd(s.header)).
			WithHint("all files of a csv dataset have one header; put others under another name")
	}
	return nil
}

// endFile takes what is left of a file: a record without its end.
func (s *splitter) endFile(rest []byte, pos *at, total int64) error {
	switch {
	case s.cut.kind == lode.RecordsFiles:
		if len(rest) > MaxRecord {
			return s.tooLong(pos)
		}
		if !s.fits(0, len(rest)) {
			if err := s.endShard(); err != nil {
				return err
			}
		}
		s.count++
		s.done.Records++
		if err := s.write(rest); err != nil {
			return err
		}
		s.index.Names = append(s.index.Names, pos.name)
		s.index.Ends = append(s.index.Ends, s.size())
	case len(rest) == 0:
	case s.cut.kind == fixed:
		return s.oddSize(pos.name, total)
	case s.cut.odd:
		return lode.Errorf(lode.Invalid, "%s: a quote is opened in this record and not closed before the file ends", pos)
	default:
		used, err := s.consume(append(rest, '\n'), pos)
		if err == nil && used != len(rest)+1 {
			err = lode.Errorf(lode.Internal, "%s: %d bytes at the end were not cut", pos, len(rest)+1-used)
		}
		return err
	}
	return nil
}

func (s *splitter) size() int64 {
	if s.cur == nil {
		return 0
	}
	return s.cur.Size()
}

func (s *splitter) write(b []byte) error {
	if len(b) == 0 && (s.count == 0 || s.cur != nil) {
		return nil
	}
	if s.cur == nil {
		w, err := s.store.Create(s.ctx)
		if err != nil {
			return err
		}
		s.cur = w
		s.begun++
	}
	_, err := s.cur.Write(b)
	return err
}

// endShard sends the current shard off to become durable.
func (s *splitter) endShard() error {
	if s.count == 0 {
		return nil
	}
	w, shard, index := s.cur, lode.Shard{Count: s.count}, s.index
	s.cur, s.count, s.index = nil, 0, lode.FileIndex{}
	s.mu.Lock()
	i := len(s.out)
	s.out = append(s.out, shard)
	s.mu.Unlock()
	s.group.Go(func() error {
		d, size, err := w.Commit()
		if err != nil {
			return err
		}
		shard.Digest, shard.Bytes = d, size
		if len(index.Ends) > 0 {
			if shard.Index, err = putJSON(s.ctx, s.store, index); err != nil {
				return err
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.out[i] = shard
		return nil
	})
	return nil
}

func putJSON(ctx context.Context, st *store.Store, v any) (lode.Digest, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return lode.Digest{}, lode.Errorf(lode.Internal, "write %T: %w", v, err)
	}
	return st.PutBytes(ctx, b)
}
