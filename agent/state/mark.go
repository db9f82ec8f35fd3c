package state

import (
	"encoding/binary"

	"lode"
	"lode/agent/journal"
)

// Mark says what the copy of a partition holds: every change of Epoch that is
// in Journal up to the position Pos, on top of all epochs before. Where every
// message of Journal was applied (a node's own), it is also complete up to
// DB.Applied of it, which is never less.
type Mark struct {
	Epoch   uint64
	Journal lode.NodeID
	Pos     uint64
}

// has reports whether a copy with this mark already holds what is at pos of a
// journal, in an epoch. An epoch has one journal.
func (m Mark) has(epoch, pos uint64) bool {
	return epoch < m.Epoch || epoch == m.Epoch && pos <= m.Pos
}

func (m Mark) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, m.Epoch)
	b = binary.LittleEndian.AppendUint64(b, m.Pos)
	return append(b, m.Journal...)
}

func parseMark(b []byte) (Mark, bool) {
	if len(b) < 16 {
		return Mark{}, false
	}
	return Mark{le64(b), lode.NodeID(b[16:]), le64(b[8:])}, true
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// appendPartition appends the name of p in keys: no name is the beginning of
// another.
func appendPartition(b []byte, p journal.Partition) []byte {
	b = append(append(b, byte(len(p.Namespace))), p.Namespace...)
	b = append(append(b, byte(len(p.Kind))), p.Kind...)
	return binary.BigEndian.AppendUint16(b, uint16(p.N))
}

// nameable reports whether appendPartition can name p.
func nameable(p journal.Partition) bool {
	return len(p.Namespace) < 256 && len(p.Kind) < 256 && p.N >= 0 && p.N < 1<<16
}

func parsePartition(b []byte) (journal.Partition, bool) {
	var s [2]string
	for i := range s {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return journal.Partition{}, false
		}
		s[i], b = string(b[1:1+int(b[0])]), b[1+int(b[0]):]
	}
	if len(b) != 2 {
		return journal.Partition{}, false
	}
	return journal.Partition{Namespace: lode.Namespace(s[0]), Kind: lode.Name(s[1]), N: int(binary.BigEndian.Uint16(b))}, true
}

// after is the first key behind all those that begin with prefix, which is not
// all 0xff.
func after(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}
