// Package fence decides what the one writer of a log knows of it: which answer
// of the server means that a message is stored, which that it never will be,
// and which means nothing. It has no clock and no I/O: bus.Log asks it after
// each answer, and the models of what is built on logs explore it.
//
// Each message is sent on the condition that the log ends at the writer's own
// tail. The server may lose the answer, may refuse by what an old leader knew,
// and may store a message minutes after it was sent. So only three things are
// known: an acknowledgement at the position after the tail, what stands there,
// and that somebody else's message stands there, after which this writer's
// never can. The writer never takes a tail from the server, except to open.
//
// Only bus and tests of machines that stand on a log may import it.
package fence

// Writer is what a writer knows. The zero Writer is about to open an empty log.
//
//	opening -(Landed)-> writing -(Landed)-> writing
//	opening -(Moved)-> opening      behind what others have written
//	writing -(Lost)-> ended         another writer has opened the log
type Writer struct {
	N     uint64 // number of the next message; 0 opens the log
	Tail  uint64 // position of the message before it
	Doubt bool   // the next message was sent and had no answer: it may be stored at any time
	Ended bool   // nothing of this writer will be stored any more
}

// Verdict is what is known of the message that was sent last.
type Verdict uint8

// The verdicts.
const (
	Again   Verdict = iota // nothing: the same bytes are to be sent again
	Landed                 // it is stored, at Tail
	Look                   // what stands at Tail+1 tells; see Found
	Moved                  // an opening message is not stored and never will be: a new one is to be sent behind Tail
	Refused                // it is not stored and never will be; another one may be sent in its place
	Lost                   // it is not stored and never will be, nor any other one
)

// Stand is what stands at the position after the tail.
type Stand uint8

// What can stand there.
const (
	Unread  Stand = iota // it cannot be read just now
	Mine                 // the message that was sent
	Other                // another one
	Trimmed              // nothing any more: who may trim has removed it
)

// Stored is called for an acknowledgement that names seq.
func (w *Writer) Stored(seq uint64) Verdict {
	if seq != w.Tail+1 { // of another message that the server took for this one
		w.Doubt = true
		return Again
	}
	return w.land()
}

// Silent is called when no answer came, or one that says nothing.
func (w *Writer) Silent() Verdict {
	w.Doubt = true
	return Again
}

// Ends is called for a refusal because the log ends at last. One that names a
// shorter log comes from a server that lags behind.
func (w *Writer) Ends(last uint64) Verdict {
	if last <= w.Tail {
		return w.Silent()
	}
	return Look
}

// Found is called with what stands at Tail+1, in a log that ends at last or
// after it.
func (w *Writer) Found(s Stand, last uint64) Verdict {
	switch {
	case s == Mine:
		return w.land()
	case s == Unread:
		return w.Silent()
	case w.N == 0:
		w.Tail, w.Doubt = last, false
		return Moved
	}
	w.Ended = true
	return Lost
}

// NoRoom is called for a refusal for lack of space, or because of the message
// itself. It is final only if no earlier copy of the message is under way.
func (w *Writer) NoRoom() Verdict {
	if w.Doubt {
		return Again
	}
	return Refused
}

// Drop forgets the message that was sent last, whatever became of it.
func (w *Writer) Drop() { w.Doubt = false }

func (w *Writer) land() Verdict {
	w.N++
	w.Tail++
	w.Doubt = false
	return Landed
}
