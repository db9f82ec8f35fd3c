package enginetest

import (
	"bytes"
	"context"
	"io"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

func (s *suite) ops(t *testing.T) {
	p := s.probe(t)
	want(t, p, "sleep 100000", "status 0 length 4 4")
	want(t, p, "unknown", "-5 -4 -6")
	want(t, p, "cancel", "1 13")
	want(t, p, "nanosleep 3", "ok")
	t.Run("ten", func(t *testing.T) { s.ten(t, p) })
	t.Run("clean flag", func(t *testing.T) {
		host := &Host{Do: func(_ context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
			done(lode.Message{Body: []byte("v")}, nil)
		}}
		for body, clean := range map[string]bool{"config k": true, "call x": false, "sleep 1": true, "count": true} {
			inv := &engine.Invocation{Body: []byte(body), Out: &Answer{}, Host: host}
			if err := p.Invoke(context.Background(), inv); err != nil || inv.Usage.Clean != clean {
				t.Errorf("%s: %+v %v", body, inv.Usage, err)
			}
		}
	})
	t.Run("error", func(t *testing.T) {
		a := &Answer{}
		host := &Host{Do: func(_ context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
			done(lode.Message{}, lode.Errorf(lode.NotFound, "no such thing"))
		}}
		if err := p.Invoke(context.Background(), &engine.Invocation{Body: []byte("call x"), Out: a, Host: host}); err != nil || !strings.HasPrefix(string(a.Body), "status 4 ") {
			t.Errorf("%q %v", a.Body, err)
		}
	})
	t.Run("hoard", func(t *testing.T) {
		big := make([]byte, abi.MaxMessage-1000)
		host := &Host{Do: func(_ context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
			done(lode.Message{Body: big}, nil)
		}}
		a := &Answer{}
		err := p.Invoke(context.Background(), &engine.Invocation{Body: []byte("hoard"), Out: a, Host: host})
		if err != nil || string(a.Body) != "8" { // of twenty
			t.Errorf("%q, %s", a.Body, show(err))
		}
	})
	t.Run("late", func(t *testing.T) { s.late(t, p) })
	t.Run("slot", func(t *testing.T) {
		slot := &slot{held: true}
		inv := &engine.Invocation{Body: []byte("sleep 1000000"), Out: &Answer{}, Host: &Host{}, Slot: slot}
		if err := p.Invoke(context.Background(), inv); err != nil || slot.left == 0 || !slot.held {
			t.Errorf("%+v %v", slot, err)
		}
		if inv.Usage.CPU > 100*time.Millisecond {
			t.Errorf("waiting was counted as computing: %v", inv.Usage.CPU)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(5*time.Millisecond, cancel)
		for _, body := range []string{"sleep 60000000000", "nanosleep 60000", "spin"} {
			err := p.Invoke(ctx, &engine.Invocation{Body: []byte(body), Out: &Answer{}, Host: &Host{}})
			if lode.KindOf(err) != lode.Cancelled {
				t.Errorf("%s: %s", body, show(err))
			}
		}
	})
	t.Run("deadline", func(t *testing.T) {
		for _, body := range []string{"sleep 60000000000", "nanosleep 60000", "spin", "call forever"} {
			host := &Host{Do: func(ctx context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
				context.AfterFunc(ctx, func() { done(lode.Message{}, ctx.Err()) })
			}}
			err := p.Invoke(context.Background(), &engine.Invocation{Body: []byte(body), Out: &Answer{}, Host: host, Deadline: time.Now().Add(10 * time.Millisecond)})
			if lode.KindOf(err) != lode.Deadline {
				t.Errorf("%s: %s", body, show(err))
			}
		}
	})
	want(t, p, "count", "1")
}

// ten: ten calls overlap, and each gets its own answer.
func (s *suite) ten(t *testing.T, p *engine.Pool) {
	var mu sync.Mutex
	var waiting []func()
	host := &Host{Do: func(_ context.Context, op abi.Op, req lode.Message, done func(lode.Message, error)) {
		mu.Lock()
		defer mu.Unlock()
		waiting = append(waiting, func() { done(lode.Message{Body: []byte(req.Get(":address"))}, nil) })
		if len(waiting) == 10 { // only when all are under way, from other goroutines
			for _, f := range waiting {
				go f()
			}
			waiting = nil
		}
	}}
	for range 20 {
		a := &Answer{}
		inv := &engine.Invocation{Body: []byte("ten"), Out: a, Host: host}
		if err := p.Invoke(context.Background(), inv); err != nil {
			t.Fatal(show(err))
		}
		got := strings.Split(string(a.Body), "")
		sort.Strings(got)
		if strings.Join(got, "") != "0123456789" || inv.Usage.Operations != 10 {
			t.Fatalf("%q, %+v", a.Body, inv.Usage)
		}
	}
}

// late: an operation that completes after its invocation reaches nobody, and
// is cancelled.
func (s *suite) late(t *testing.T, p *engine.Pool) {
	var mu sync.Mutex
	var late []func(lode.Message, error)
	cancelled := make(chan struct{}, 100)
	host := &Host{Do: func(ctx context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
		context.AfterFunc(ctx, func() { cancelled <- struct{}{} })
		mu.Lock()
		defer mu.Unlock()
		late = append(late, done)
	}}
	for range 10 {
		if err := p.Invoke(context.Background(), &engine.Invocation{Body: []byte("abandon"), Out: &Answer{}, Host: host}); err != nil {
			t.Fatal(show(err))
		}
		<-cancelled
	}
	mu.Lock()
	defer mu.Unlock()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				want(t, p, "sleep 1000", "status 0 length 4 4")
			}
		}
	})
	for _, done := range late {
		done(lode.Message{Body: []byte("too late")}, nil)
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
}

// slot checks that it is left and entered in turn.
type slot struct {
	held bool
	left int
}

// Leave implements engine.Slot.
func (s *slot) Leave() {
	if s.held {
		s.left++
	}
	s.held = false
}

// Enter implements engine.Slot.
func (s *slot) Enter(context.Context) error {
	s.held = true
	return nil
}

var _ engine.Slot = (*slot)(nil)

// cutOff is what comes when the caller goes away.
type cutOff struct{}

// Read implements io.Reader.
func (cutOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// stream: bodies of any length, both ways, and a reader that never ends.
func (s *suite) stream(t *testing.T) {
	p := s.probe(t)
	long := bytes.Repeat([]byte("0123456789"), 200_000)
	a := &Answer{}
	inv := &engine.Invocation{Body: []byte("stream"), Stream: io.MultiReader(bytes.NewReader(long[:100]), bytes.NewReader(long[100:])), Out: a, Host: &Host{}, Deadline: time.Now().Add(10 * time.Second)}
	if err := p.Invoke(context.Background(), inv); err != nil || !bytes.Equal(a.Body, long) || a.Writes < 2 {
		t.Errorf("%d bytes in %d writes, %s", len(a.Body), a.Writes, show(err))
	}
	if inv.Usage.BodyIn != int64(len(long)+6) || inv.Usage.BodyOut != int64(len(long)) {
		t.Errorf("%+v", inv.Usage)
	}
	r, w := io.Pipe()
	defer w.Close()
	inv = &engine.Invocation{Body: []byte("stream"), Stream: r, Out: &Answer{}, Host: &Host{}, Deadline: time.Now().Add(20 * time.Millisecond)}
	if err := p.Invoke(context.Background(), inv); lode.KindOf(err) != lode.Deadline {
		t.Error(show(err))
	}
	inv = &engine.Invocation{Body: []byte("stream"), Stream: io.MultiReader(bytes.NewReader(long[:100]), cutOff{}), Out: &Answer{}, Host: &Host{}}
	if err := p.Invoke(context.Background(), inv); lode.KindOf(err) != lode.Cancelled {
		t.Errorf("a body that breaks off was taken for a whole one: %s", show(err))
	}
	cat := PoolOf(t, s.e, C(t, "command"), engine.Config{Contract: lode.ContractCommand, Args: []string{"cat"}})
	a = &Answer{}
	inv = &engine.Invocation{Body: long[:10], Stream: bytes.NewReader(long[10:]), Out: a, Deadline: time.Now().Add(10 * time.Second)}
	if err := cat.Invoke(context.Background(), inv); err != nil || !bytes.Equal(a.Body, long) {
		t.Errorf("%d bytes, %s", len(a.Body), show(err))
	}
}
