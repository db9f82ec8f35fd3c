// Package vectors holds the byte vectors and scripted conversations of the
// guest ABI that every SDK passes. They are data: JSON files with an about or
// name line each, bytes in hexadecimal. Only tests import it.
package vectors

import _ "embed" // the vectors are files

// Messages are messages with what they decode to, and bytes that are none.
//
//go:embed messages.json
var Messages []byte

// Completions are completion records.
//
//go:embed completions.json
var Completions []byte

// Conversations are what a guest's handler of that name does with a host.
//
//go:embed conversations.json
var Conversations []byte

// Bodies are bodies of state operations with what they decode to, and bytes
// that are none.
//
//go:embed bodies.json
var Bodies []byte

// Agents are what the methods of a kind named vector do, turn by turn.
//
//go:embed agents.json
var Agents []byte
