package lode

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
)

// heap is what is known of the garbage of the calls before. A clean sandbox
// does not look: its first call is its only one.
var heap = struct {
	calls  uint64 // since the last look
	next   uint64 // how many calls go by until the next one
	after  uint64 // bytes in use after the last collection between calls
	before uint64 // bytes ever allocated at the last look
}{next: 2}

// most is how many calls go by at most without a look.
const most = 4

func init() {
	// A sandbox lives for one invocation, so the first collection may come
	// late; whoever reaches it has a heap worth collecting as usual.
	debug.SetGCPercent(400)
	runtime.AddCleanup(&[16]byte{}, func(int) { debug.SetGCPercent(100) }, 0)
}

// collect keeps a sandbox small that serves many calls: a collection started
// by an allocation may not get to its end there, since an export returns
// without letting its workers run. Looking costs a quarter of a small call, so
// not all of them look if they allocate little.
func collect() {
	heap.calls++
	if heap.calls < heap.next {
		return
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	each := (m.TotalAlloc - heap.before) / heap.calls
	heap.next, heap.calls, heap.before = max(min(most, garbage/(each+1)), 1), 0, m.TotalAlloc
	if m.HeapAlloc > 2*heap.after+garbage {
		runtime.GC()
		runtime.ReadMemStats(&m)
		heap.after = m.HeapAlloc
	}
}

// garbage is how many bytes of it may lie about, beside as much as is in use.
const garbage = 8 << 20

//go:wasmexport lode_warm
func lodeWarm() (rc int32) {
	defer failOnPanic(&rc)
	for range 3 {
		rehearse()
		for _, fn := range exports.warm {
			fn()
		}
	}
	return 0
}

// rehearse runs what nearly every invocation runs, so that the snapshot has
// its allocator, formatting and JSON behind it, without user code.
func rehearse() {
	type sample struct {
		S string         `json:"s"`
		N float64        `json:"n"`
		L []string       `json:"l"`
		M map[string]any `json:"m"`
	}
	h, _ := adapt(func(_ context.Context, s sample) (map[string]any, error) {
		return map[string]any{"s": strings.ToUpper(s.S), "n": fmt.Sprintf("%d %v %s", 7, s.N, s.L)}, nil
	})
	m := message{head: []pair{{":kind", "http"}, {":method", "POST"}, {":path", "/"}, {"content-length", "60"}}}
	raw := m.append(make([]byte, 0, 1024))
	m, _ = parse(raw)
	v := &invocation{request: m, port: &rehearsal{body: []byte(`{"s":"rehearsal","n":1.5,"l":["a","b"],"m":{"k":[1,true,null]}}`)}}
	h(v)
	v.end()
	for _, n := range []int{16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10} {
		sink = make([]byte, n)
	}
	sink = nil
	for _, t := range shapes {
		warmType(t)
	}
}

// sink keeps the allocations above from being optimised away.
var sink []byte

// warmType fills encoding/json's caches for t. A type with its own code for
// JSON may not stand a zero value: whatever happens here is of no consequence.
func warmType(t reflect.Type) {
	defer func() { recover() }()
	p := reflect.New(t)
	json.Marshal(p.Interface())
	json.Unmarshal([]byte("null"), p.Interface())
	json.Unmarshal([]byte("{}"), p.Interface())
}

// rehearsal is a port that leads nowhere.
type rehearsal struct {
	body []byte
	hostPort
}

var _ port = (*rehearsal)(nil)

func (r *rehearsal) read(_ context.Context, p []byte) (int, error) {
	n := copy(p, r.body)
	r.body = r.body[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *rehearsal) respond(_ context.Context, status int, head []pair, body []byte) error {
	m := message{head: append(make([]pair, 0, len(head)+1), head...), body: body}
	sink = m.append(make([]byte, 0, 256+len(body)))
	return nil
}
