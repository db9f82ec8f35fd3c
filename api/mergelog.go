package api

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// LogSource is the log of one node: Logs.ReadLogs, in one namespace.
type LogSource struct {
	Node string
	Read func(ctx context.Context, f LogFilter, see func(LogLine) error) error
}

// Lines of a log that is followed are held this long before they are shown, so
// that those of another node which were said before them can come first.
const logHold = 300 * time.Millisecond

// MergeLogs calls see for the lines of all sources in the order of their
// times, oldest first; see is called by one goroutine at a time. Sources order
// their own lines. With f.Tail the last lines of all together are shown.
//
// A source that fails is told of in a line of level warn, and the others go on;
// if all fail, the first one's error is returned. With f.Follow the past comes
// first, in order; then lines are shown as they come, in order as far as they
// come within 300 ms of each other, and a source that failed is asked again
// every second from where it stopped, until ctx is over, which is no error.
func MergeLogs(ctx context.Context, sources []LogSource, f LogFilter, see func(LogLine) error) error {
	if len(sources) == 1 {
		return sources[0].Read(ctx, f, see)
	}
	past := f
	past.Follow = false
	last, err := mergePast(ctx, sources, past, see)
	if err != nil || !f.Follow {
		if f.Follow && ctx.Err() != nil {
			return nil
		}
		return err
	}
	return followAll(ctx, sources, f, last, see)
}

// feed is one source on its way through a merge.
type feed struct {
	source LogSource
	lines  chan LogLine
	err    error // when lines is closed
	head   LogLine
}

// mergePast merges sources that end, and returns the time of each one's last
// line.
func mergePast(ctx context.Context, sources []LogSource, f LogFilter, see func(LogLine) error) (map[string]time.Time, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	feeds := make([]*feed, len(sources))
	for i, s := range sources {
		fd := &feed{source: s, lines: make(chan LogLine, 64)}
		feeds[i] = fd
		running.Go(func() {
			defer close(fd.lines)
			fd.err = s.Read(ctx, f, func(l LogLine) error {
				select {
				case fd.lines <- l:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
		})
	}
	last := map[string]time.Time{}
	out := tail{max: f.Tail, see: see}
	var heads feedHeap
	var failed []*feed
	pull := func(fd *feed) {
		if l, ok := <-fd.lines; ok {
			fd.head = l
			last[fd.source.Node] = l.At
			heap.Push(&heads, fd)
		} else if fd.err != nil {
			failed = append(failed, fd)
		}
	}
	for _, fd := range feeds {
		pull(fd)
	}
	for len(heads) > 0 {
		fd := heap.Pop(&heads).(*feed)
		if err := out.add(fd.head); err != nil {
			return last, err
		}
		pull(fd)
	}
	if err := out.flush(); err != nil {
		return last, err
	}
	if len(failed) == len(feeds) {
		return last, failed[0].err
	}
	for _, fd := range failed {
		if err := see(missingLine(fd.source.Node, fd.err)); err != nil {
			return last, err
		}
	}
	return last, nil
}

// missingLine says that a node's lines are not there.
func missingLine(node string, err error) LogLine {
	return LogLine{At: time.Now().UTC(), Node: node, Level: "warn", Text: "lines of this node are missing: " + err.Error()}
}

// tail keeps the last max lines, or hands on all of them at once.
type tail struct {
	max  int
	see  func(LogLine) error
	kept []LogLine
	next int // where the oldest is, once kept is full
}

func (t *tail) add(l LogLine) error {
	switch {
	case t.max <= 0:
		return t.see(l)
	case len(t.kept) < t.max:
		t.kept = append(t.kept, l)
	default:
		t.kept[t.next] = l
		t.next = (t.next + 1) % t.max
	}
	return nil
}

func (t *tail) flush() error {
	for i := range t.kept {
		if err := t.see(t.kept[(t.next+i)%len(t.kept)]); err != nil {
			return err
		}
	}
	t.kept = nil
	return nil
}

// feedHeap is ordered by the time of the next line.
type feedHeap []*feed

func (h feedHeap) Len() int           { return len(h) }
func (h feedHeap) Less(i, j int) bool { return h[i].head.At.Before(h[j].head.At) }
func (h feedHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *feedHeap) Push(x any)        { *h = append(*h, x.(*feed)) }
func (h *feedHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

var _ heap.Interface = (*feedHeap)(nil)

// followAll shows lines as they come; last is where each source stopped.
func followAll(ctx context.Context, sources []LogSource, f LogFilter, last map[string]time.Time, see func(LogLine) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	lines := make(chan LogLine, 256)
	for _, s := range sources {
		running.Go(func() { followOne(ctx, s, f, last[s.Node], lines) })
	}
	held := holding{see: see}
	t := time.NewTicker(logHold / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return held.release(time.Time{})
		case l := <-lines:
			heap.Push(&held.lines, heldLine{l, time.Now()})
		case now := <-t.C:
			if err := held.release(now.Add(-logHold)); err != nil {
				return err
			}
		}
	}
}

// followOne follows a source from the line behind last, again and again.
func followOne(ctx context.Context, s LogSource, f LogFilter, last time.Time, lines chan<- LogLine) {
	told := false
	send := func(l LogLine) error {
		select {
		case lines <- l:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for ctx.Err() == nil {
		g := f
		g.Tail = 0
		if !last.IsZero() {
			g.Since = last.Add(1)
		}
		err := s.Read(ctx, g, func(l LogLine) error {
			last, told = l.At, false
			return send(l)
		})
		if err != nil && !told && ctx.Err() == nil {
			told = true
			if send(missingLine(s.Node, err)) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// holding is the lines that wait for older ones.
type holding struct {
	see   func(LogLine) error
	lines heldHeap
}

type heldLine struct {
	LogLine
	came time.Time
}

// release shows the lines that came before then, and what is older than them;
// a zero then shows all.
func (h *holding) release(then time.Time) error {
	n := 0 // of the lines in order that are due: up to the last one that came before then
	ordered := make([]heldLine, 0, len(h.lines))
	for len(h.lines) > 0 {
		l := heap.Pop(&h.lines).(heldLine)
		ordered = append(ordered, l)
		if then.IsZero() || l.came.Before(then) {
			n = len(ordered)
		}
	}
	for _, l := range ordered[:n] {
		if err := h.see(l.LogLine); err != nil {
			return err
		}
	}
	h.lines = append(h.lines, ordered[n:]...) // sorted, and so a heap
	return nil
}

// heldHeap is ordered by the time of the line.
type heldHeap []heldLine

func (h heldHeap) Len() int           { return len(h) }
func (h heldHeap) Less(i, j int) bool { return h[i].At.Before(h[j].At) }
func (h heldHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *heldHeap) Push(x any)        { *h = append(*h, x.(heldLine)) }
func (h *heldHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

var _ heap.Interface = (*heldHeap)(nil)
