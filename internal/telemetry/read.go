package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"regexp"
	"slices"
	"time"
)

// Filter chooses lines of the log. The zero value chooses all of them.
type Filter struct {
	Namespace  string // "": all
	Function   string // "": all
	Invocation string
	Trace      string    // first digits of a trace id: calls of that trace only
	Since      time.Time // zero: from the first
	Grep       string    // regular expression (RE2) on the text; "": all
	Tail       int       // the last N of what there is; 0: all
	Calls      bool      // with the line that each invocation leaves
	Follow     bool      // go on with what comes, until ctx is done
}

// followBuffer is how many lines a slow follower may lag behind.
const followBuffer = 4096

// Logs yields the lines that f chooses, in the order of arrival. An error is
// yielded once, at the end: of kind Invalid for a bad Grep. With Follow it
// ends without an error when ctx is done or the Telemetry is closed. A
// follower that is too slow loses lines; a line of level warn says how many.
func (t *Telemetry) Logs(ctx context.Context, f Filter) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		m, err := newMatcher(f)
		if err != nil {
			yield(Line{}, err)
			return
		}
		var follow *follower
		if f.Follow {
			follow = &follower{lines: make(chan Line, followBuffer)}
			defer t.writer.tell(request{remove: follow})
		}
		running := t.writer.tell(request{add: follow})
		ok, err := t.readSegments(ctx, m, yield)
		if err != nil {
			yield(Line{}, err)
			return
		}
		if ok && running && follow != nil {
			follow.run(ctx, m, yield)
		}
	}
}

// run yields lines as they come.
func (f *follower) run(ctx context.Context, m *matcher, yield func(Line, error) bool) {
	for {
		select {
		case <-ctx.Done():
			return
		case l, open := <-f.lines:
			if !open {
				return
			}
			if m.match(&l) && !yield(l, nil) {
				return
			}
		}
		if n := f.lost.Swap(0); n > 0 {
			if !yield(Line{Time: time.Now(), Level: 4, Text: lostText(n)}, nil) {
				return
			}
		}
	}
}

func lostText(n int64) string {
	return string(appendInt(nil, "lines lost because this reader is too slow: ", n))
}

// readSegments yields what is on disk; false: the reader has had enough.
func (t *Telemetry) readSegments(ctx context.Context, m *matcher, yield func(Line, error) bool) (bool, error) {
	if t.cfg.Dir == "" {
		return true, nil
	}
	list, err := listSegments(t.cfg.Dir)
	if err != nil {
		return false, err
	}
	list = m.skip(list)
	if m.Tail > 0 {
		return tail(ctx, list, m, yield)
	}
	for _, s := range list {
		more := true
		err := s.read(ctx, m, func(l Line) bool {
			more = yield(l, nil)
			return more
		})
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// tail yields the last m.Tail lines: it reads the segments from the newest on
// until it has them.
func tail(ctx context.Context, list []segment, m *matcher, yield func(Line, error) bool) (bool, error) {
	var found [][]Line
	want := m.Tail
	for _, s := range slices.Backward(list) {
		var last []Line // at most want lines, as a ring once it is full
		next := 0
		err := s.read(ctx, m, func(l Line) bool {
			if len(last) < want {
				last = append(last, l)
			} else {
				last[next] = l
				next = (next + 1) % want
			}
			return true
		})
		if err != nil {
			return false, err
		}
		found = append(found, append(last[next:len(last):len(last)], last[:next]...))
		if want -= len(last); want == 0 {
			break
		}
	}
	for _, lines := range slices.Backward(found) {
		for _, l := range lines {
			if !yield(l, nil) {
				return false, nil
			}
		}
	}
	return true, nil
}

// read yields the lines of one segment that match. A segment that was removed
// meanwhile has none; a line that cannot be read is passed over.
func (s *segment) read(ctx context.Context, m *matcher, yield func(Line) bool) error {
	f, err := os.Open(s.path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(io.LimitReader(f, s.size), 256<<10)
	var long []byte
	for {
		b, err := r.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			long = append(long, b...)
			continue
		}
		if err != nil {
			return nil // the end, or a torn last line
		}
		if len(long) > 0 {
			b = append(long, b...)
			long = long[:0]
		}
		if ctx.Err() != nil {
			return nil
		}
		if !m.mayMatch(b) {
			continue
		}
		if l, ok := parseLine(b); ok && m.match(&l) && !yield(l) {
			return nil
		}
	}
}

// matcher is a Filter made ready.
type matcher struct {
	Filter
	grep *regexp.Regexp
	must [][]byte // bytes that each line must hold
}

func newMatcher(f Filter) (*matcher, error) {
	m := &matcher{Filter: f}
	if f.Grep != "" {
		re, err := regexp.Compile(f.Grep)
		if err != nil {
			return nil, fmt.Errorf("%w: grep: %w; the syntax is that of RE2: put a backslash before . ( ) [ ] * + ?", ErrInvalid, err)
		}
		m.grep = re
	}
	if f.Invocation != "" {
		m.must = append(m.must, appendField(nil, `"id":`, string(f.Invocation)))
		if began, ok := idTime(f.Invocation); ok && began.After(f.Since) {
			m.Since = began.Add(-time.Minute) // clocks of two nodes differ
		}
	}
	if f.Function != "" {
		m.must = append(m.must, appendField(nil, `"fn":`, string(f.Function)))
	}
	m.Calls = m.Calls || f.Trace != ""
	return m, nil
}

// skip leaves out the segments that ended before Since.
func (m *matcher) skip(list []segment) []segment {
	if m.Since.IsZero() {
		return list
	}
	since := m.Since.UnixMilli()
	for len(list) > 1 && list[1].began < since {
		list = list[1:]
	}
	return list
}

func (m *matcher) mayMatch(b []byte) bool {
	for _, must := range m.must {
		if !bytes.Contains(b, must) {
			return false
		}
	}
	return true
}

func (m *matcher) match(l *Line) bool {
	switch {
	case m.Namespace != "" && l.Namespace != m.Namespace,
		m.Function != "" && l.Function != m.Function,
		m.Invocation != "" && l.Invocation != m.Invocation,
		!m.Since.IsZero() && l.Time.Before(m.Since),
		l.Call != nil && !m.Calls,
		m.Trace != "" && (l.Call == nil || len(l.Call.Trace) < len(m.Trace) || l.Call.Trace[:len(m.Trace)] != m.Trace),
		m.grep != nil && !m.grep.MatchString(l.Text):
		return false
	}
	return true
}

// idTime is the time in an invocation id.
func idTime(id string) (time.Time, bool) {
	if len(id) != 26 {
		return time.Time{}, false
	}
	var ms int64
	for _, c := range []byte(id[:10]) {
		i := bytes.IndexByte([]byte("0123456789ABCDEFGHJKMNPQRSTVWXYZ"), c)
		if i < 0 {
			return time.Time{}, false
		}
		ms = ms<<5 | int64(i)
	}
	return time.UnixMilli(ms), true
}

// Tail returns the last lines that an invocation logged, at most max bytes,
// each ended by \n.
func (t *Telemetry) Tail(ctx context.Context, ns string, id string, max int) []byte {
	var b []byte
	for l, err := range t.Logs(ctx, Filter{Namespace: ns, Invocation: id, Tail: 1000}) {
		if err != nil {
			break
		}
		b = append(append(b, l.Text...), '\n')
	}
	if len(b) > max {
		b = b[len(b)-max:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 && i+1 < len(b) {
			b = b[i+1:]
		}
	}
	return b
}
