package telemetry

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const segmentSuffix = ".ndjson"

// segment is one file of the log.
type segment struct {
	path  string
	began int64 // Unix milliseconds
	size  int64
	last  time.Time // modification
}

// listSegments finds the segments of dir, the oldest first.
func listSegments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the log folder: %w", err)
	}
	var list []segment
	for _, e := range entries {
		stem, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		began, err := strconv.ParseInt(stem, 10, 64)
		if !ok || err != nil || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		list = append(list, segment{filepath.Join(dir, e.Name()), began, info.Size(), info.ModTime()})
	}
	slices.SortFunc(list, func(a, b segment) int { return int(min(1, max(-1, a.began-b.began))) })
	return list, nil
}

// segments is the writing side of the folder. Only the writer's goroutine
// uses it.
type segments struct {
	dir    string
	most   int64 // bytes of one segment
	all    int64 // bytes of all
	age    time.Duration
	create func(path string) (*os.File, error)

	file *os.File // nil: the next write begins a segment
	name string
	size int64
	last int64 // began of the newest segment ever seen: names only go up, whatever the clock does
}

func openSegments(cfg *Config) (*segments, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("the log folder: %w", err)
	}
	s := &segments{dir: cfg.Dir, most: cfg.SegmentBytes, all: cfg.LogBytes, age: cfg.LogAge, create: createSegment}
	return s, s.retain(time.Now())
}

func createSegment(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// write appends whole lines. After an error nothing of b is in the log.
func (s *segments) write(now time.Time, b []byte) error {
	if s.file != nil && s.size > 0 && s.size+int64(len(b)) > s.most {
		s.end()
		if err := s.retain(now); err != nil {
			return err
		}
	}
	if s.file == nil {
		if err := s.begin(now); err != nil {
			return err
		}
	}
	n, err := s.file.Write(b)
	if err == nil {
		s.size += int64(n)
		return nil
	}
	if s.file.Truncate(s.size) != nil {
		s.end() // what was written of b is a torn last line now
		return err
	}
	if _, seekErr := s.file.Seek(s.size, 0); seekErr != nil {
		s.end()
	}
	return err
}

func (s *segments) begin(now time.Time) error {
	for ms := max(now.UnixMilli(), s.last+1); ; ms++ {
		path := filepath.Join(s.dir, fmt.Sprintf("%013d%s", ms, segmentSuffix))
		f, err := s.create(path)
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		s.file, s.name, s.size, s.last = f, path, 0, ms
		return nil
	}
}

func (s *segments) end() {
	if s.file == nil {
		return
	}
	_ = s.file.Close() // every line was written already
	s.file, s.name, s.size = nil, "", 0
}

// retain removes the oldest segments over the bounds, but never the one that
// is written.
func (s *segments) retain(now time.Time) error {
	list, err := listSegments(s.dir)
	if err != nil {
		return err
	}
	var total int64
	for _, g := range list {
		total += g.size
		s.last = max(s.last, g.began)
	}
	for _, g := range list {
		if g.path == s.name || total+s.most <= s.all && now.Sub(g.last) <= s.age {
			continue
		}
		if err := os.Remove(g.path); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("the log folder: %w", err)
		}
		total -= g.size
	}
	return nil
}
