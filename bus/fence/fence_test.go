package fence

import "testing"

func TestVerdicts(t *testing.T) {
	writing := Writer{N: 3, Tail: 7}
	opening := Writer{Tail: 7}
	doubtful := Writer{N: 3, Tail: 7, Doubt: true}
	for _, c := range []struct {
		name string
		w    Writer
		do   func(*Writer) Verdict
		want Verdict
		then Writer
	}{
		{"stored behind the tail", doubtful, func(w *Writer) Verdict { return w.Stored(8) }, Landed, Writer{N: 4, Tail: 8}},
		{"stored elsewhere", writing, func(w *Writer) Verdict { return w.Stored(5) }, Again, doubtful},
		{"no answer", writing, (*Writer).Silent, Again, doubtful},
		{"an old leader", writing, func(w *Writer) Verdict { return w.Ends(6) }, Again, doubtful},
		{"the tail itself", writing, func(w *Writer) Verdict { return w.Ends(7) }, Again, doubtful},
		{"longer", writing, func(w *Writer) Verdict { return w.Ends(8) }, Look, writing},
		{"longer by its own message", doubtful, func(w *Writer) Verdict { return w.Found(Mine, 9) }, Landed, Writer{N: 4, Tail: 8}},
		{"longer by another's", doubtful, func(w *Writer) Verdict { return w.Found(Other, 9) }, Lost, Writer{N: 3, Tail: 7, Doubt: true, Ended: true}},
		{"longer and trimmed", writing, func(w *Writer) Verdict { return w.Found(Trimmed, 9) }, Lost, Writer{N: 3, Tail: 7, Ended: true}},
		{"longer and unreadable", writing, func(w *Writer) Verdict { return w.Found(Unread, 9) }, Again, doubtful},
		{"opening, longer by its own", opening, func(w *Writer) Verdict { return w.Found(Mine, 8) }, Landed, Writer{N: 1, Tail: 8}},
		{"opening, longer by another's", opening, func(w *Writer) Verdict { return w.Found(Other, 9) }, Moved, Writer{Tail: 9}},
		{"opening, unreadable", opening, func(w *Writer) Verdict { return w.Found(Unread, 9) }, Again, Writer{Tail: 7, Doubt: true}},
		{"no room", writing, (*Writer).NoRoom, Refused, writing},
		{"no room, but an earlier copy", doubtful, (*Writer).NoRoom, Again, doubtful},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := c.w
			if got := c.do(&w); got != c.want || w != c.then {
				t.Fatalf("verdict %d, want %d; %+v, want %+v", got, c.want, w, c.then)
			}
		})
	}
}
