package wasm

import (
	"encoding/json"

	"lode"
	"lode/engine"
	"lode/sdk/abi"
)

// lodeFuncs are the imports of sdk/abi, section 3.
func lodeFuncs() []hostFunc {
	return []hostFunc{
		fn("request", "ii", lodeRequest),
		fn("read", "ii", lodeRead),
		fn("respond", "ii", lodeRespond),
		fn("write", "ii", lodeWrite),
		fn("submit", "iii", lodeSubmit),
		fn("wait", "li", lodeWait),
		fn("take", "iii", lodeTake),
		fn("cancel", "i", lodeCancel),
		{"log", lodeLog, sig("iii"), nil},
		{"fail", lodeFail, sig("ii"), nil},
		{"window", lodeWindow, sig("lii"), sig("l")},
	}
}

func lodeRequest(c *call, s []uint64) int32 {
	if c.inv == nil {
		return 0
	}
	head := c.inv.Head
	if uint64(uint32(s[1])) >= uint64(len(head)) {
		copy(c.need(s[0], uint64(len(head))), head)
	}
	return int32(len(head))
}

func lodeRead(c *call, s []uint64) int32 {
	p := c.need(s[0], s[1])
	if len(c.body) > 0 || len(p) == 0 {
		n := copy(p, c.body)
		c.body = c.body[n:]
		return int32(n)
	}
	if c.stream == nil {
		return 0
	}
	n, end := c.fromStream(p)
	if n == 0 && !end {
		return abi.Again
	}
	return int32(n)
}

func lodeRespond(c *call, s []uint64) int32 {
	m := c.need(s[0], s[1])
	body, err := abi.Decode(m, func(_, _ []byte) {})
	if err != nil {
		return abi.Malformed
	}
	if c.answered || c.inv == nil {
		return abi.Begun
	}
	c.answered = true
	r := &c.inv.Reply
	r.Head = append(r.Head[:0], m[:len(m)-len(body)]...)
	r.Body = append(r.Body, body...)
	return 0
}

// window is the number of bytes that a guest may write before it has to wait.
const writeWindow = 4 * engine.ReplyMax

func lodeWrite(c *call, s []uint64) int32 {
	p := c.need(s[0], s[1])
	if c.inv == nil {
		c.text = append(c.text, p[:min(len(p), maxText-len(c.text))]...)
		return int32(len(p))
	}
	c.answered = true
	r := &c.inv.Reply
	n := min(len(p), max(writeWindow-len(r.Body), 0))
	r.Body = append(r.Body, p[:n]...)
	return int32(n)
}

// maxText bounds a Description.
const maxText = 64 << 10

func lodeLog(c *call, s []uint64) {
	line := c.need(s[1], s[2])
	c.log(int(int32(s[0])), line)
}

// log gives one line away, or nothing before the snapshot.
func (c *call) log(level int, line []byte) {
	if c.inv == nil || c.inv.Host == nil {
		return
	}
	c.inv.Host.Log(level, line[:min(len(line), maxLine)])
}

// maxLine bounds one line of log.
const maxLine = 64 << 10

func lodeFail(c *call, s []uint64) {
	text := c.need(s[0], s[1])
	g := &lode.GuestError{}
	if len(text) > maxText || json.Unmarshal(text, g) != nil {
		g = &lode.GuestError{Type: "error", Message: string(text[:min(len(text), maxLine)])}
	}
	c.failure = g
}

// lodeWindow lays the shard over guest memory; -1 where it must not.
func lodeWindow(c *call, s []uint64) {
	off, ptr, n := int64(s[0]), uint64(uint32(s[1])), uint64(uint32(s[2]))
	const granule = 64 << 10
	s[0] = ^uint64(0)
	if c.inv == nil || c.inv.Windows == nil || off < 0 || off%granule != 0 || ptr%granule != 0 || n%granule != 0 {
		return
	}
	c.need(ptr, n)
	_, size := c.inv.Windows.File()
	have := min(int64(n), size-off)
	if have <= 0 {
		s[0] = 0
		return
	}
	if err := c.sb.mem.window(c.inv.Windows, off, int(ptr), int(n)); err != nil {
		// What was there may be gone: the guest cannot go on.
		panic(err)
	}
	s[0] = uint64(have)
}
