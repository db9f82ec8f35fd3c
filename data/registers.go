package data

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"lode"
)

// Registers are durable pointers that change by compare-and-swap. All methods
// may be called at the same time.
type Registers interface {
	// Get returns the newest acknowledged value and its revision.
	Get(ctx context.Context, key string) (value []byte, rev uint64, ok bool, err error)
	// Swap sets key if its revision is still expect, 0 meaning that it must not
	// exist, and returns the new revision. Precondition or Conflict: somebody
	// else was first. After any other error the change may have happened.
	Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error)
	// Delete removes key; a missing one is no error. A revision is never used
	// again for a key that is made anew.
	Delete(ctx context.Context, key string) error
	// List returns the entries whose key starts with prefix, sorted by key.
	List(ctx context.Context, prefix string) ([]Register, error)
}

// Register is one entry of Registers.
type Register struct {
	Key   string
	Value []byte
	Rev   uint64
}

// MemRegisters are registers in memory, for tests and throw-away nodes. The
// zero value is empty and ready.
type MemRegisters struct {
	mu   sync.Mutex
	at   map[string]Register
	last uint64
}

var _ Registers = (*MemRegisters)(nil)

// Get implements Registers.
func (m *MemRegisters) Get(ctx context.Context, key string) ([]byte, uint64, bool, error) {
	if err := ended(ctx); err != nil {
		return nil, 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.at[key]
	return slices.Clone(r.Value), r.Rev, ok, nil
}

// Swap implements Registers.
func (m *MemRegisters) Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	if err := ended(ctx); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at[key].Rev != expect {
		return 0, lode.Errorf(lode.Precondition, "register %s has changed", key)
	}
	if m.at == nil {
		m.at = map[string]Register{}
	}
	m.last++
	m.at[key] = Register{key, slices.Clone(value), m.last}
	return m.last, nil
}

// Delete implements Registers.
func (m *MemRegisters) Delete(ctx context.Context, key string) error {
	if err := ended(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.at, key)
	return nil
}

// List implements Registers.
func (m *MemRegisters) List(ctx context.Context, prefix string) ([]Register, error) {
	if err := ended(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Register
	for _, k := range slices.Sorted(maps.Keys(m.at)) {
		if strings.HasPrefix(k, prefix) {
			r := m.at[k]
			out = append(out, Register{k, slices.Clone(r.Value), r.Rev})
		}
	}
	return out, nil
}
