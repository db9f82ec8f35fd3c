package agent

import (
	"bytes"
	"encoding/binary"

	"lode"
	"lode/agent/journal"
)

// The keys of a partition. K is an agent's key, escaped so that none is the
// beginning of another and order is kept: a zero byte becomes 00 ff, the end
// is 00 01. Integers in keys are big-endian, so that they sort.
//
//	a K m                agent: meta
//	a K s KEY            agent: its state under KEY
//	a K r ID             agent: reply of a turn whose id the caller gave
//	a K q u64 ID         agent: when that was (Unix ms); to forget the oldest
//	a K t NAME           agent: timer
//	a K e u64            agent: event
//	a K w SOCKET         agent: WebSocket
//	a K x u64            agent: dead message
//	b                    when the kind was born whose agents these are; see erase.go
//	c KIND 00 u16        channel to a partition of KIND: next number
//	d u64 K NAME         timers by when they are due (Unix ms)
//	i KIND 00 u16        channel from a partition of KIND: what was consumed
//	o KIND 00 u16 u64    message to a partition of KIND, not yet consumed
//	r u32 ID             reply of a turn, by the two minutes in which it ended; see partition.age
const (
	spaceAgent   = 'a'
	spaceChannel = 'c'
	spaceDue     = 'd'
	spaceInbox   = 'i'
	spaceOutbox  = 'o'
	spaceReply   = 'r'

	partMeta   = 'm'
	partState  = 's'
	partReply  = 'r'
	partOrder  = 'q'
	partTimer  = 't'
	partEvent  = 'e'
	partSocket = 'w'
	partDead   = 'x'
)

// escape appends an agent's key as it stands in keys.
func escape(b []byte, key string) []byte {
	for i := range len(key) {
		if b = append(b, key[i]); key[i] == 0 {
			b = append(b, 0xff)
		}
	}
	return append(b, 0, 1)
}

// unescape reads an agent's key off b; false if it is none.
func unescape(b []byte) (key string, rest []byte, ok bool) {
	var out []byte
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 >= len(b) {
			return "", nil, false
		}
		out = append(out, b[:i]...)
		switch b[i+1] {
		case 1:
			return string(out), b[i+2:], true
		case 0xff:
			out = append(out, 0)
		default:
			return "", nil, false
		}
		b = b[i+2:]
	}
}

// agentPrefix is where everything of an agent begins.
func agentPrefix(key string) []byte {
	return escape(append(make([]byte, 0, len(key)+8), spaceAgent), key)
}

// in is prefix, a part, and what follows it.
func in(prefix []byte, part byte, rest string) []byte {
	b := make([]byte, 0, len(prefix)+1+len(rest))
	return append(append(append(b, prefix...), part), rest...)
}

// inN is in with a number.
func inN(prefix []byte, part byte, n uint64) []byte {
	b := make([]byte, 0, len(prefix)+9)
	return binary.BigEndian.AppendUint64(append(append(b, prefix...), part), n)
}

// after is the first key behind all that begin with prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func dueKey(due int64, key, name string) []byte {
	b := binary.BigEndian.AppendUint64([]byte{spaceDue}, uint64(due))
	return append(escape(b, key), name...)
}

func parseDue(k []byte) (due int64, key, name string, ok bool) {
	if len(k) < 9 || k[0] != spaceDue {
		return 0, "", "", false
	}
	key, rest, ok := unescape(k[9:])
	return int64(binary.BigEndian.Uint64(k[1:])), key, string(rest), ok
}

// peer is a partition of the same namespace: the other end of a channel.
type peer struct {
	kind lode.Name
	n    int
}

func (p peer) in(ns lode.Namespace) journal.Partition {
	return journal.Partition{Namespace: ns, Kind: p.kind, N: p.n}
}

func peerKey(space byte, p peer) []byte {
	b := append([]byte{space}, p.kind...)
	return binary.BigEndian.AppendUint16(append(b, 0), uint16(p.n))
}

func outKey(p peer, n uint64) []byte {
	return binary.BigEndian.AppendUint64(peerKey(spaceOutbox, p), n)
}

// parsePeer reads what peerKey wrote; rest is what follows.
func parsePeer(k []byte) (p peer, rest []byte, ok bool) {
	i := bytes.IndexByte(k, 0)
	if i < 1 || len(k) < i+3 {
		return peer{}, nil, false
	}
	return peer{lode.Name(k[1:i]), int(binary.BigEndian.Uint16(k[i+1:]))}, k[i+3:], true
}

// replyAge is how many milliseconds one number of the keys of replies stands
// for; replies are kept for one to two of them.
const replyAge = 2 * 60 * 1000

func replyKey(age uint32, id string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{spaceReply}, age), id...)
}
