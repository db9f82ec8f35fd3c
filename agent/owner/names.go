package owner

import (
	"hash/fnv"
	"strconv"
	"strings"

	"lode"
	"lode/agent/journal"
)

const (
	registersTable = "agents"
	nodesTable     = "agent-nodes"

	journalPrefix = "agents-"
	longestLog    = 48 // of the law of lode.Name
)

// JournalName is the log that holds a node's journal: agents- and the node's
// name, or where that is too long its beginning and a hash of all of it.
func JournalName(n lode.NodeID) string {
	name := journalPrefix + string(n)
	if len(name) <= longestLog {
		return name
	}
	h := fnv.New64a()
	h.Write([]byte(n))
	sum := strconv.FormatUint(h.Sum64(), 36)
	return name[:longestLog-1-len(sum)] + "-" + sum
}

// parsePartition reads ns/kind/n; false for anything else.
func parsePartition(key string) (p journal.Partition, ok bool) {
	ns, rest, ok1 := strings.Cut(key, "/")
	kind, num, ok2 := strings.Cut(rest, "/")
	n, err := strconv.Atoi(num)
	p = journal.Partition{Namespace: lode.Namespace(ns), Kind: lode.Name(kind), N: n}
	return p, ok1 && ok2 && err == nil && n >= 0 && n < mostParts && p.String() == key
}
