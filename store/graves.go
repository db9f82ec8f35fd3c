package store

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lode"
)

// keepGraves is how long a deletion is remembered: a node that was away for
// less cannot bring a deleted blob back. One that was away for longer can; what
// it brings has no name and is collected again.
const keepGraves = 7 * 24 * time.Hour

// graveSize is the bytes of a record of the file "graves":
//
//	0   32  digest
//	32   8  cutoff, Unix nanoseconds, big-endian: copies last put at it or
//	        before are deleted; 0 ends what records before said of the digest
//	40   8  when the record was made, Unix nanoseconds, big-endian
//	48   4  CRC-32C of the 48 bytes before, big-endian
//
// A later record of a digest replaces an earlier one. Records are appended and
// not synced: one that a power loss takes costs a second collection of the
// blob, no more. A record that does not match its checksum is passed over.
const graveSize = 52

type grave struct {
	cutoff time.Time
	made   time.Time
}

// graves are the deletions that a node remembers.
type graves struct {
	mu      sync.Mutex
	f       *os.File // nil: memory only
	path    string
	at      map[lode.Digest]grave
	records int // in the file
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openGraves reads the file, forgets what is too old, and writes it anew if
// that shortens it.
func openGraves(dir string, now time.Time) (*graves, error) {
	g := &graves{path: filepath.Join(dir, "graves"), at: map[lode.Digest]grave{}}
	b, err := os.ReadFile(g.path)
	if err != nil && !isMissing(err) {
		return nil, ioError("read "+g.path, err)
	}
	g.at, g.records = parseGraves(b)
	for d, v := range g.at {
		if now.Sub(v.made) > keepGraves {
			delete(g.at, d)
		}
	}
	if len(b)%graveSize != 0 || g.records > len(g.at) {
		return g, g.rewrite()
	}
	g.f, err = os.OpenFile(g.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	return g, ioError("open "+g.path, err)
}

// parseGraves reads records, and counts them; a tail that was cut short and
// records that do not match their checksum are passed over.
func parseGraves(b []byte) (map[lode.Digest]grave, int) {
	at, n := map[lode.Digest]grave{}, 0
	for ; len(b) >= graveSize; b = b[graveSize:] {
		n++
		if crc32.Checksum(b[:48], castagnoli) != binary.BigEndian.Uint32(b[48:]) {
			continue
		}
		d := lode.Digest(b[:32])
		cutoff, made := int64(binary.BigEndian.Uint64(b[32:])), int64(binary.BigEndian.Uint64(b[40:]))
		if cutoff == 0 {
			delete(at, d)
		} else {
			at[d] = grave{time.Unix(0, cutoff), time.Unix(0, made)}
		}
	}
	return at, n
}

func appendGrave(b []byte, d lode.Digest, v grave) []byte {
	start := len(b)
	b = append(b, d[:]...)
	cutoff := int64(0)
	if !v.cutoff.IsZero() {
		cutoff = v.cutoff.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(cutoff))
	b = binary.BigEndian.AppendUint64(b, uint64(v.made.UnixNano()))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// rewrite replaces the file by one with what is known now. mu is held, or the
// graves are not shared yet.
func (g *graves) rewrite() error {
	b := make([]byte, 0, len(g.at)*graveSize)
	for d, v := range g.at {
		b = appendGrave(b, d, v)
	}
	tmp := g.path + ".new"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return ioError("write "+tmp, err)
	}
	if err := os.Rename(tmp, g.path); err != nil {
		return ioError("write "+g.path, err)
	}
	f, err := os.OpenFile(g.path, os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return ioError("open "+g.path, err)
	}
	if g.f != nil {
		g.f.Close()
	}
	g.f, g.records = f, len(g.at)
	return nil
}

// cutoff is the time up to which copies of d are deleted; zero for a blob that
// is not known to be.
func (g *graves) cutoff(d lode.Digest) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.at[d].cutoff
}

// bury remembers that copies of d put at cutoff or before are deleted.
func (g *graves) bury(d lode.Digest, cutoff, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.at[d]; ok && !cutoff.After(v.cutoff) {
		return nil
	}
	g.at[d] = grave{cutoff, now}
	return g.write(d, g.at[d], now)
}

// end forgets the deletion of d: it was put again.
func (g *graves) end(d lode.Digest, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.at[d]; !ok {
		return nil
	}
	delete(g.at, d)
	return g.write(d, grave{made: now}, now)
}

// write appends a record, and now and then shortens the file. mu is held.
func (g *graves) write(d lode.Digest, v grave, now time.Time) error {
	if g.f == nil {
		return nil
	}
	if g.records > 1024 && g.records > 2*len(g.at) {
		for d, v := range g.at {
			if now.Sub(v.made) > keepGraves {
				delete(g.at, d)
			}
		}
		return g.rewrite()
	}
	if _, err := g.f.Write(appendGrave(nil, d, v)); err != nil {
		g.f.Truncate(int64(g.records) * graveSize) // a part of a record would hide those behind it
		return ioError("write "+g.path, err)
	}
	g.records++
	return nil
}

// expire forgets what is too old, in memory; the file follows when it is
// written anew.
func (g *graves) expire(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for d, v := range g.at {
		if now.Sub(v.made) > keepGraves {
			delete(g.at, d)
		}
	}
}

func (g *graves) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.f == nil {
		return nil
	}
	err := g.f.Close()
	g.f = nil
	return err
}

var _ io.Closer = (*graves)(nil)
