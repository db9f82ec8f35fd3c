package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// side is one generation as the mover reaches it.
type side struct {
	nc *nats.Conn
	js jetstream.JetStream
}

const (
	chunkSize  = 512 << 10
	chunkWait  = 5 * time.Second
	readWait   = 300 * time.Millisecond // for the next message of a copy; longer with each attempt
	streamPath = "$JS.API.STREAM."
)

type apiAnswer struct {
	Error   *jetstream.APIError    `json:"error"`
	Config  jetstream.StreamConfig `json:"config"`
	State   jetstream.StreamState  `json:"state"`
	Deliver string                 `json:"deliver_subject"`
}

func (s side) call(ctx context.Context, subject string, question any) (apiAnswer, error) {
	var a apiAnswer
	ask, err := json.Marshal(question)
	if err != nil {
		return a, err
	}
	m, err := s.nc.RequestWithContext(ctx, subject, ask)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, err
	}
	if a.Error != nil {
		return a, a.Error
	}
	return a, nil
}

// copyStream brings a stream from one generation to the other as it is: the
// same messages at the same positions, and the same last position.
func copyStream(ctx context.Context, from, to side, cfg jetstream.StreamConfig) error {
	inbox := from.nc.NewInbox()
	chunks := make(chan *nats.Msg, 64)
	done := make(chan struct{})
	defer close(done)
	sub, err := from.nc.Subscribe(inbox, func(m *nats.Msg) {
		select {
		case chunks <- m:
		case <-done:
		}
	})
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	snap, err := from.call(ctx, streamPath+"SNAPSHOT."+cfg.Name, map[string]any{
		"deliver_subject": inbox, "no_consumers": true, "chunk_size": chunkSize, "window_size": 8 * chunkSize, "jsck": true,
	})
	if err != nil {
		return err
	}
	rest, err := to.call(ctx, streamPath+"RESTORE."+cfg.Name, map[string]any{"config": cfg, "state": snap.State})
	if err != nil {
		return err
	}
	for {
		var m *nats.Msg
		select {
		case m = <-chunks:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(chunkWait):
			return lode.Errorf(lode.Unavailable, "the copy of %s stands still", cfg.Name)
		}
		if len(m.Data) == 0 {
			if s := m.Header.Get("Status"); s != "" && s != "204" {
				return lode.Errorf(lode.Unavailable, "the copy of %s ended early: %s", cfg.Name, m.Header.Get("Description"))
			}
			return finishRestore(ctx, to, rest.Deliver, cfg.Name)
		}
		ack, err := to.nc.RequestWithContext(ctx, rest.Deliver, m.Data)
		if err != nil {
			return err
		}
		if len(ack.Data) > 0 {
			return lode.Errorf(lode.Unavailable, "the copy of %s was refused: %s", cfg.Name, ack.Data)
		}
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				return err
			}
		}
	}
}

func finishRestore(ctx context.Context, to side, subject, name string) error {
	m, err := to.nc.RequestWithContext(ctx, subject, nil)
	if err != nil {
		return err
	}
	var a apiAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return lode.Errorf(lode.Unavailable, "the copy of %s cannot be finished: %w", name, err)
	}
	if a.Error != nil {
		return a.Error
	}
	return nil
}

// span is a part of a stream: what stands behind after, up to upto. The zero
// span is all of it.
type span struct{ after, upto uint64 }

// sameStream compares a stream. A copy that lags, or that is being read while
// its member goes away, answers late or not at all: then another one is asked.
func sameStream(ctx context.Context, from, to side, name string, part span) (err error) {
	for n := range 5 {
		err = compareStreams(ctx, from, to, name, part, readWait<<min(n, 3))
		if err == nil || ctx.Err() != nil || lode.KindOf(err) == lode.Damaged {
			return err
		}
	}
	return err
}

// compareStreams checks that two copies of a stream are equal: the last position,
// unless only a part is compared, and each message to the byte. Only marks that
// live for a while may be gone on one side.
func compareStreams(ctx context.Context, from, to side, name string, part span, wait time.Duration) error {
	var infos [2]*jetstream.StreamInfo
	var readers [2]*reader
	for i, s := range []side{from, to} {
		st, err := s.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		infos[i] = st.CachedInfo()
		r, err := newReader(ctx, st, part, wait)
		if err != nil {
			return err
		}
		defer r.stop()
		readers[i] = r
	}
	if a, b := infos[0].State, infos[1].State; part.upto == 0 && a.LastSeq != b.LastSeq {
		return lode.Errorf(lode.Damaged, "the copy of %s ends at %d, not at %d", name, b.LastSeq, a.LastSeq)
	} else if part.upto == 0 && part.after > 0 && a.Msgs != b.Msgs {
		return lode.Errorf(lode.Damaged, "the copy of %s has %d messages, not %d", name, b.Msgs, a.Msgs)
	}
	a, err := readers[0].next()
	if err != nil {
		return err
	}
	b, err := readers[1].next()
	for {
		if err != nil {
			return err
		}
		switch {
		case a == nil && b == nil:
			return nil
		case a != nil && b != nil && a.seq == b.seq:
			if a.m.Subject() != b.m.Subject() || !bytes.Equal(a.m.Data(), b.m.Data()) || !sameHeader(a.m.Headers(), b.m.Headers()) {
				return lode.Errorf(lode.Damaged, "the copy of %s differs at %d", name, a.seq)
			}
			if a, err = readers[0].next(); err == nil {
				b, err = readers[1].next()
			}
		case b == nil || a != nil && a.seq < b.seq:
			if !a.passing() {
				return lode.Errorf(lode.Damaged, "the copy of %s has no message %d", name, a.seq)
			}
			a, err = readers[0].next()
		default:
			if !b.passing() && b.seq >= infos[0].State.FirstSeq {
				return lode.Errorf(lode.Damaged, "the copy of %s has a message %d that is not in the original", name, b.seq)
			}
			b, err = readers[1].next()
		}
	}
}

// sameHeader compares headers but for what a writer expected of the stream: it
// has had its effect, and what is followed is written without it (follow.go).
func sameHeader(a, b nats.Header) bool {
	a, b = lasting(a), lasting(b)
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if !slices.Equal(v, b[k]) {
			return false
		}
	}
	return true
}

// lasting is a header without what its writer expected.
func lasting(h nats.Header) nats.Header {
	out := make(nats.Header)
	for k, v := range h {
		if !strings.HasPrefix(k, "Nats-Expected-") {
			out[k] = v
		}
	}
	return out
}

// reader reads a part of a stream from its front to its end.
type reader struct {
	it    jetstream.MessagesContext
	ctx   context.Context
	wait  time.Duration // for one message
	upto  uint64        // 0: the end
	ended bool
}

type stored struct {
	m   jetstream.Msg
	seq uint64
}

// passing reports whether a message is removed by the server in time.
func (s *stored) passing() bool { return s.m.Headers().Get(jetstream.MsgTTLHeader) != "" }

func newReader(ctx context.Context, st jetstream.Stream, part span, wait time.Duration) (*reader, error) {
	if s := st.CachedInfo().State; s.Msgs == 0 || s.LastSeq <= part.after {
		return &reader{ended: true}, nil
	}
	c, err := st.OrderedConsumer(ctx, orderedFrom(part.after+1))
	if err != nil {
		return nil, err
	}
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(512, 2*maxPayload))
	return &reader{it: it, ctx: ctx, wait: wait, upto: part.upto}, err
}

func (r *reader) next() (*stored, error) {
	if r.ended {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.wait)
	defer cancel()
	m, err := r.it.Next(jetstream.NextContext(ctx))
	if err != nil {
		return nil, err
	}
	meta, err := m.Metadata()
	if err != nil {
		return nil, err
	}
	r.ended = meta.NumPending == 0 || r.upto > 0 && meta.Sequence.Stream >= r.upto
	if r.upto > 0 && meta.Sequence.Stream > r.upto {
		return nil, nil
	}
	return &stored{m, meta.Sequence.Stream}, nil
}

func (r *reader) stop() {
	if r.it != nil {
		r.it.Stop()
	}
}

// streams lists what a generation holds but for the record of its own moves.
func (s side) streams(ctx context.Context) (streamSet, error) {
	out := make(streamSet)
	l := s.js.ListStreams(ctx)
	for i := range l.Info() {
		if i.Config.Name != tableStream(layoutTable) {
			out[i.Config.Name] = i
		}
	}
	return out, l.Err()
}

// fence takes the subjects of a stream away, so that nobody can write to it,
// or gives them back. Nothing else of it changes.
func (s side) fence(ctx context.Context, i *jetstream.StreamInfo, on bool) error {
	cfg := i.Config
	cfg.Subjects = subjectsOf(cfg.Name)
	if on {
		cfg.Subjects = []string{fencedSubject(cfg.Name)}
	}
	_, err := s.js.UpdateStream(ctx, cfg)
	return err
}

func isFenced(i *jetstream.StreamInfo) bool {
	return slices.Equal(i.Config.Subjects, []string{fencedSubject(i.Config.Name)})
}

// syncStore puts every file of a store on the disk: the server copies them
// without that.
func syncStore(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has replaced it meanwhile
		}
		if err != nil || !d.IsDir() && !d.Type().IsRegular() || strings.HasSuffix(path, ".lck") {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
