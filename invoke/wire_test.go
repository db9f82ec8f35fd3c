package invoke

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"lode"
)

func TestParcels(t *testing.T) {
	req := &lode.Request{ID: "01", Namespace: "default", Function: "f", Alias: "live", Handler: "h", Trigger: lode.TriggerAsync, Method: "PUT", Path: "/x?y",
		Head: []lode.Pair{{Key: "a", Value: "b"}}, Deadline: time.Unix(5, 0).UTC(), Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		IdempotencyKey: "k", Caller: "default/g@1", Depth: 3}
	b, err := encodeParcel(submissionOf(req), []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	var s submission
	r := bytes.NewReader(b)
	if err := readParcel(r, &s); err != nil {
		t.Fatal(err)
	}
	got, err := s.request()
	if err != nil || !reflect.DeepEqual(got, req) {
		t.Errorf("%+v %v, want %+v", got, err, req)
	}
	if rest, err := readRest(r, 4, "f"); err != nil || string(rest) != "body" {
		t.Errorf("%q %v", rest, err)
	}
	_, err = readRest(bytes.NewReader(b), 4, "f")
	wantKind(t, err, lode.TooLarge)
	for n := range b[:len(b)-4] {
		if err := readParcel(bytes.NewReader(b[:n]), &s); lode.KindOf(err) != lode.Invalid {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	err = readParcel(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'}), &s)
	wantKind(t, err, lode.TooLarge)
	_, err = (&submission{}).request()
	wantKind(t, err, lode.Invalid)
}

// No bytes of a peer do harm, and what is read is written the same again.
func FuzzParcel(f *testing.F) {
	for _, v := range []any{submission{Work: work{ID: "1", Namespace: "n", Function: "f"}, Key: "k"}, ask{Namespace: "n", ID: "1", Wait: time.Second}, Put{Queue: "q", Delay: 1},
		reply{ID: "1", Call: &Call{ID: "1", Error: lode.Errorf(lode.Crashed, "x")}, Calls: []Call{{}}, Queue: &QueueState{}}} {
		b, err := encodeParcel(v, []byte("rest"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{2, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s submission
		if readParcel(bytes.NewReader(b), &s) == nil {
			if req, err := s.request(); err == nil && (req.ID == "" || req.Function == "") {
				t.Errorf("%+v", req)
			}
		}
		var a ask
		_ = readParcel(bytes.NewReader(b), &a)
		var p Put
		_ = readParcel(bytes.NewReader(b), &p)
		r, rest, err := decodeReply(b)
		if err != nil {
			return
		}
		again, err := encodeParcel(r, rest)
		if err != nil {
			t.Fatal(err)
		}
		r2, rest2, err := decodeReply(again)
		if err != nil || !bytes.Equal(rest, rest2) || r2.ID != r.ID || len(r2.Calls) != len(r.Calls) {
			t.Errorf("%+v became %+v, %v", r, r2, err)
		}
	})
}

// A key's record and a note are read from storage that may be damaged.
func FuzzNote(f *testing.F) {
	f.Add("~3 crashed it fell over")
	f.Add("~ x")
	f.Add("~-1 x")
	f.Add("unavailable no node")
	f.Fuzz(func(t *testing.T, note string) {
		free, rest := splitNote(note)
		if free < 0 || len(rest) > len(note) {
			t.Errorf("%q: %d %q", note, free, rest)
		}
		if e := errorOf(note); e != nil {
			if back := errorOf(noteOf(e, free)); back == nil || back.Kind != e.Kind || back.Detail != e.Error() && e.Detail != "" {
				t.Errorf("%q became %+v, then %+v", note, e, back)
			}
		}
	})
}

// What is stored is read back without harm, whatever it is.
func FuzzStored(f *testing.F) {
	w := &work{ID: "1", Namespace: "n", Function: "f", Key: "k"}
	if b, err := encodeWork(w, []byte("body")); err == nil {
		f.Add(b)
	}
	if b, err := encodeRecord(&record{Work: *w, State: lode.StateDone, Part: "p"}); err == nil {
		f.Add(b)
	}
	f.Add(encodeMessage(envelope{Type: "t", From: "q"}, []byte("body")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, body, err := decodeWork(b); err == nil {
			again, err := encodeWork(w, body)
			if err != nil {
				t.Skip() // a time out of JSON's range
			}
			if w2, body2, err := decodeWork(again); err != nil || !bytes.Equal(body, body2) || w2.key() != w.key() || w2.itemID() != w.itemID() {
				t.Errorf("%+v became %+v, %v", w, w2, err)
			}
		}
		if r, err := decodeRecord(b); err == nil && (r.Work.ID == "" || r.State == "") {
			t.Errorf("%+v", r)
		}
		if e, body, err := decodeMessage(b); err == nil {
			if _, body2, err := decodeMessage(encodeMessage(e, body)); err != nil || !bytes.Equal(body, body2) {
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}
