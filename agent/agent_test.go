package agent

import (
	"testing"
)

// TestTurns: what a turn writes the next one sees, and a restart too.
func TestTurns(t *testing.T) {
	_, n := one(t)
	n.wants("k/x", "add", 1, "1")
	n.wants("k/x", "add", 2, "3")
	n.wants("k/x", "get", "", "3")
	n.wants("k/y", "get", "", "0")
	n.down()
	n.up()
	n.wants("k/x", "get", "", "3")
	n.restart()
	n.wants("k/x", "add", 1, "4")
}
