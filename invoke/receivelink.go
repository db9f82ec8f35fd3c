package invoke

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"

	"lode"
	"lode/engine"
	"lode/link"
)

// TalkMethod is the method of the link by which running invocations, and the
// groups that they form, speak over nodes.
const TalkMethod = "talk"

// What one node tells another. The head of a call has two bytes: a version,
// and what it is. Its body is a packet: u32 length of the JSON, u32 length of
// the rest, little-endian, the JSON, the rest. So is the body of the answer; the
// answer's head is empty.
//
//	what     JSON       rest        answer's JSON  rest
//	mail     wireMail   body        wireAnswer     body
//	many     wireMany   arguments   manyAnswer     -
//	join     wireJoin   -           joined         -
//	round    wireRound  a partial   wireOutcome    the result
//	end      wireEnd    -           wireEnded      -
//	done     wireDone   -           -              -
//
// A mail takes effect at most once: who sent it and lost the connection does
// not know. A round may be told again: it is known by session, number and node.
const (
	talkVersion = 1

	talkMail  = 1
	talkMany  = 2
	talkJoin  = 3
	talkRound = 4
	talkEnd   = 5
	talkDone  = 6
)

// maxPacketJSON is how long the JSON of a packet may be.
const maxPacketJSON = 4 << 20

// wireMail is a message to a running invocation.
type wireMail struct {
	Namespace lode.Namespace `json:"ns"`
	To        string         `json:"to"`
	Verb      string         `json:"verb,omitempty"`
	Caller    string         `json:"caller,omitempty"`
	Head      []lode.Pair    `json:"head,omitempty"`
	Wait      bool           `json:"wait,omitempty"` // for an answer
}

type wireAnswer struct {
	Head []lode.Pair `json:"head,omitempty"`
}

func pack(v any, rest []byte) ([]byte, error) {
	j, err := json.Marshal(v)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write to another node: %w", err)
	}
	if len(j) > maxPacketJSON {
		return nil, lode.Errorf(lode.TooLarge, "what goes to another node has a head of %d bytes; at most %d", len(j), maxPacketJSON)
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 8+len(j)+len(rest)), uint32(len(j)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(rest)))
	return append(append(b, j...), rest...), nil
}

// unpack reads what pack wrote.
func unpack(r io.Reader, v any) (rest []byte, err error) {
	cannot := func(err error) error {
		return lode.Errorf(lode.Invalid, "a packet of another node cannot be read: %w", err)
	}
	var n [8]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, cannot(err)
	}
	size, more := binary.LittleEndian.Uint32(n[:]), binary.LittleEndian.Uint32(n[4:])
	if size > maxPacketJSON || more > engine.MaxMessage {
		return nil, lode.Errorf(lode.TooLarge, "a packet of another node has %d and %d bytes", size, more)
	}
	j, err := readExactly(r, size)
	if err != nil {
		return nil, cannot(err)
	}
	if err := json.Unmarshal(j, v); err != nil {
		return nil, cannot(err)
	}
	if rest, err = readExactly(r, more); err != nil {
		return nil, cannot(err)
	}
	return rest, nil
}

// readExactly reads n bytes; it takes no more memory than twice what has come.
func readExactly(r io.Reader, n uint32) ([]byte, error) {
	const first = 64 << 10
	b := make([]byte, 0, min(n, first))
	for uint32(len(b)) < n {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(2*cap(b), int(n))), b...)
		}
		k, err := io.ReadFull(r, b[len(b):cap(b)])
		if b = b[:len(b)+k]; err != nil {
			return nil, err
		}
	}
	return b, nil
}

// ask has another node answer.
func (s *Service) ask(ctx context.Context, to lode.NodeID, what byte, v any, body []byte, answer any) (rest []byte, err error) {
	if s.spread == nil {
		return nil, lode.Errorf(lode.Gone, "there is no node %s: this one is alone", to)
	}
	b, err := pack(v, body)
	if err != nil {
		return nil, err
	}
	got := link.Bytes{Max: 8 + maxPacketJSON + engine.MaxMessage}
	if err := s.spread.peers.Call(ctx, to, &link.Request{Method: TalkMethod, Head: []byte{talkVersion, what}, Body: b}, &got); err != nil {
		return nil, err
	}
	return unpack(bytes.NewReader(got.Body), answer)
}

// HandleTalk answers what other nodes tell by TalkMethod.
func (s *Service) HandleTalk(ctx context.Context, in *link.Incoming) error {
	if len(in.Head) != 2 || in.Head[0] != talkVersion {
		return lode.Errorf(lode.Invalid, "node %s says something that this one does not know", in.From).WithHint("the nodes run different versions of Lode: `lode nodes` shows them")
	}
	answer, body, err := s.talk(ctx, in.From, in.Head[1], in.Whole())
	if err != nil {
		return err
	}
	b, err := pack(answer, body)
	if err != nil {
		return err
	}
	return in.Reply(nil, b)
}

// talk does what another node asks.
func (s *Service) talk(ctx context.Context, from lode.NodeID, what byte, r io.Reader) (answer any, body []byte, err error) {
	switch what {
	case talkMail:
		return s.serveMail(ctx, r)
	case talkMany:
		return s.serveMany(ctx, r)
	case talkJoin:
		return s.groups.serveJoin(ctx, from, r)
	case talkRound:
		return s.groups.serveRound(ctx, from, r)
	case talkEnd:
		return s.groups.serveEnd(from, r)
	case talkDone:
		return s.groups.serveDone(from, r)
	}
	return nil, nil, lode.Errorf(lode.Invalid, "node %s asks for %d, which this one does not know", from, what)
}

// askMail brings a message to an invocation that runs on another node.
func (s *Service) askMail(ctx context.Context, to runAddress, w *wireMail, body []byte) (lode.Message, error) {
	var ans wireAnswer
	rest, err := s.ask(ctx, to.node, talkMail, w, body, &ans)
	if err != nil {
		return lode.Message{}, err
	}
	return lode.Message{Head: ans.Head, Body: rest}, nil
}

func (s *Service) serveMail(ctx context.Context, r io.Reader) (any, []byte, error) {
	var w wireMail
	body, err := unpack(r, &w)
	if err != nil {
		return nil, nil, err
	}
	addr, err := lode.ParseAddress(w.To)
	if err != nil {
		return nil, nil, err
	}
	to, ok, err := parseRun(addr)
	if err == nil && (!ok || string(to.node) != s.cfg.Node) {
		err = lode.Errorf(lode.Invalid, "%.100q is not an invocation of this node", w.To)
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := s.callRunning(ctx, to, &w, body)
	return wireAnswer{m.Head}, m.Body, err
}
