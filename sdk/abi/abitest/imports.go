package abitest

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"lode/sdk/abi"
)

// imports makes the host's modules: lode_v1, and WASI with the completion
// descriptor in it.
func (g *Guest) imports(ctx context.Context) error {
	mem := func(m api.Module, p, n uint32) []byte {
		b, ok := m.Memory().Read(p, n)
		if !ok {
			panic("abitest: out of the guest's memory")
		}
		return b
	}
	b := g.runtime.NewHostModuleBuilder(abi.Module)
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, p, n uint32) int32 {
		raw := Message{Head: g.call.call.Head}.Encode()
		if len(raw) <= int(n) {
			copy(mem(m, p, n), raw)
		}
		return int32(len(raw))
	}).Export("request")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, p, n uint32) int32 { return g.call.read(mem(m, p, n)) }).Export("read")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, p, n uint32) int32 { return g.call.respond(mem(m, p, n)) }).Export("respond")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, p, n uint32) int32 { return g.call.write(mem(m, p, n)) }).Export("write")
	b.NewFunctionBuilder().WithFunc(func(ctx context.Context, m api.Module, op, p, n uint32) int32 {
		return g.call.submit(ctx, abi.Op(op), mem(m, p, n))
	}).Export("submit")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, timeout int64, out uint32) int32 {
		return g.wait(time.Duration(timeout), mem(m, out, 12))
	}).Export("wait")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, id, p, n uint32) int32 { return g.call.take(id, mem(m, p, n)) }).Export("take")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, id uint32) int32 { return g.call.cancel(id) }).Export("cancel")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, level int32, p, n uint32) {
		g.call.res.Logs = append(g.call.res.Logs, Line{level, string(mem(m, p, n))})
	}).Export("log")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, p, n uint32) { g.call.setFailure(mem(m, p, n)) }).Export("fail")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, offset int64, p, n uint32) int64 {
		if p%(64<<10) != 0 || n%(64<<10) != 0 || offset%(64<<10) != 0 {
			return -1
		}
		return int64(copy(mem(m, p, n), g.call.call.Shard[min(offset, int64(len(g.call.call.Shard))):]))
	}).Export("window")
	if _, err := b.Instantiate(ctx); err != nil {
		return err
	}
	return g.wasi(ctx)
}

func (g *Guest) wait(timeout time.Duration, out []byte) int32 {
	g.call.mu.Lock()
	idle := g.call.open == 0
	g.call.mu.Unlock()
	if idle {
		return abi.Idle
	}
	if !g.call.await(timeout) {
		return 0
	}
	g.call.next(1)[0].Append(out[:0])
	return 1
}

func (s *state) take(id uint32, p []byte) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.done[id]
	if !ok {
		return -1
	}
	if len(c.result) <= len(p) {
		copy(p, c.result)
		delete(s.done, id)
	}
	return int32(len(c.result))
}

func (s *state) cancel(id uint32) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.cancels[id]; f != nil {
		f()
	}
	return 0
}

// Numbers of WASI preview 1.
const (
	eAgain = 6
	eBadf  = 8
)

// wasi is wazero's, with the functions replaced that know the completion
// descriptor. Standard input is empty.
func (g *Guest) wasi(ctx context.Context) error {
	b := g.runtime.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, fd, out uint32) uint32 {
		if fd > 2 && fd != abi.CompletionFD {
			return eBadf
		}
		stat := make([]byte, 24)
		stat[0] = 2 // character device
		if fd == abi.CompletionFD {
			stat[2] = 4 // non-blocking
		}
		binary.LittleEndian.PutUint64(stat[8:], 1<<1|1<<6|1<<27)
		m.Memory().Write(out, stat)
		return 0
	}).Export("fd_fdstat_get")
	b.NewFunctionBuilder().WithFunc(func(context.Context, uint32, uint32) uint32 { return 0 }).Export("fd_fdstat_set_flags")
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module, fd, iovs, n, out uint32) uint32 {
		if fd != abi.CompletionFD {
			m.Memory().WriteUint32Le(out, 0)
			return 0
		}
		p, _ := m.Memory().ReadUint32Le(iovs)
		size, _ := m.Memory().ReadUint32Le(iovs + 4)
		cs := g.call.next(int(size / 12))
		if len(cs) == 0 {
			return eAgain
		}
		var raw []byte
		for _, c := range cs {
			raw = c.Append(raw)
		}
		m.Memory().Write(p, raw)
		m.Memory().WriteUint32Le(out, uint32(len(raw)))
		return 0
	}).Export("fd_read")
	b.NewFunctionBuilder().WithFunc(g.poll).Export("poll_oneoff")
	_, err := b.Instantiate(ctx)
	return err
}

// poll waits for the nearest clock or the completion descriptor.
func (g *Guest) poll(_ context.Context, m api.Module, in, out, n, count uint32) uint32 {
	timeout := time.Duration(-1)
	subs, _ := m.Memory().Read(in, n*48)
	watch := -1
	for i := range int(n) {
		s := subs[i*48:]
		switch s[8] {
		case 0:
			d := time.Duration(binary.LittleEndian.Uint64(s[24:]))
			if binary.LittleEndian.Uint16(s[40:])&1 != 0 { // absolute
				d -= time.Duration(now(binary.LittleEndian.Uint32(s[16:])))
			}
			if d = max(d, 0); timeout < 0 || d < timeout {
				timeout = d
			}
		case 1:
			if binary.LittleEndian.Uint32(s[16:]) == abi.CompletionFD {
				watch = i
			}
		}
	}
	ready := false
	if watch >= 0 {
		ready = g.call.await(timeout)
	} else if timeout > 0 {
		time.Sleep(timeout)
	}
	var events []byte
	for i := range int(n) {
		s := subs[i*48:]
		if s[8] == 0 && !ready || i == watch && ready {
			e := make([]byte, 32)
			copy(e, s[:8])
			e[10] = s[8]
			events = append(events, e...)
		}
	}
	m.Memory().Write(out, events)
	m.Memory().WriteUint32Le(count, uint32(len(events)/32))
	return 0
}

// began is the zero of the monotonic clock that poll compares with.
var began = time.Now()

func now(clock uint32) int64 {
	if clock == 0 {
		return time.Now().UnixNano()
	}
	return int64(time.Since(began))
}
