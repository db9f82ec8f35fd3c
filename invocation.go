package lode

import (
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"time"
)

// InvocationID names one logical request: 26 characters of Crockford's
// base 32, sortable by time (48 bits of milliseconds, 80 random bits).
type InvocationID string

// NewInvocationID makes an id for an invocation that begins at now.
func NewInvocationID(now time.Time) InvocationID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	rand.Read(b[6:]) // never fails
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = digits[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return InvocationID(out[:])
}

// Trigger is what caused an invocation.
type Trigger string

// The triggers.
const (
	TriggerHTTP     Trigger = "http"     // a route or /fn
	TriggerCall     Trigger = "call"     // another function, or lode call
	TriggerAsync    Trigger = "async"    // Prefer: respond-async, Lambda's Event
	TriggerSchedule Trigger = "schedule" // cron
	TriggerQueue    Trigger = "queue"    // a batch of messages
	TriggerJob      Trigger = "job"      // one shard
	TriggerMerge    Trigger = "merge"    // two partial results
	TriggerLambda   Trigger = "lambda"   // the Invoke API
	TriggerAgent    Trigger = "agent"    // a turn of an agent
)

// State is where an asynchronous invocation stands.
//
//	queued -> running -> done
//	   ^         |-----> failed -> (queued, on replay)
//	   |---retry-|-----> cancelled
type State string

// The states.
const (
	StateQueued    State = "queued"
	StateRunning   State = "running"
	StateDone      State = "done"
	StateFailed    State = "failed"
	StateCancelled State = "cancelled"
)

// Pair is one header: the head of a message is a list of them. Names are lower
// case; those that start with a colon belong to Lode (see sdk/abi).
type Pair struct{ Key, Value string }

// Message is what goes to a guest and comes from it: head and body.
type Message struct {
	Head []Pair
	Body []byte
}

// Get returns the first value of key, or "".
func (m *Message) Get(key string) string {
	for i := range m.Head {
		if m.Head[i].Key == key {
			return m.Head[i].Value
		}
	}
	return ""
}

// Set replaces the first value of key, or appends it.
func (m *Message) Set(key, value string) {
	for i := range m.Head {
		if m.Head[i].Key == key {
			m.Head[i].Value = value
			return
		}
	}
	m.Head = append(m.Head, Pair{key, value})
}

// Usage is the metering record of one invocation.
type Usage struct {
	Queued     time.Duration `json:"queued"`      // waiting for admission
	Wall       time.Duration `json:"wall"`        // from admission to the answer
	CPU        time.Duration `json:"cpu"`         // computing in the guest
	Memory     int64         `json:"memory"`      // peak bytes of the sandbox
	BodyIn     int64         `json:"body_in"`     // bytes
	BodyOut    int64         `json:"body_out"`    // bytes
	Cold       bool          `json:"cold"`        // a sandbox had to be made
	Clean      bool          `json:"clean"`       // no effect left the sandbox before the answer
	Operations int           `json:"operations"`  // host operations submitted
	LogDropped int64         `json:"log_dropped"` // bytes over the limit
}

func itoa(n int) string { return strconv.Itoa(n) }
