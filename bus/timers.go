package bus

import (
	"time"
	_ "unsafe" // for the names below
)

// The times of elections. The server has none to set: they are variables of
// its package, so they are set here, once, before any server runs. With its
// own (4 to 9 s) a member that dies stops all writes for up to 9 s; with
// these it is about one. timers_test.go fails when a new version of the server
// renames them or does not heed them.
//
//go:linkname minElectionTimeout github.com/nats-io/nats-server/v2/server.minElectionTimeout
//go:linkname maxElectionTimeout github.com/nats-io/nats-server/v2/server.maxElectionTimeout
//go:linkname hbInterval github.com/nats-io/nats-server/v2/server.hbInterval
//go:linkname lostQuorumInterval github.com/nats-io/nats-server/v2/server.lostQuorumInterval
//go:linkname lostQuorumCheck github.com/nats-io/nats-server/v2/server.lostQuorumCheck
//go:linkname streamCatchupStartInterval github.com/nats-io/nats-server/v2/server.streamCatchupStartInterval
var (
	minElectionTimeout time.Duration
	maxElectionTimeout time.Duration
	hbInterval         time.Duration
	lostQuorumInterval time.Duration
	lostQuorumCheck    time.Duration

	// A member that lacks something asks the leader for it. When it asks
	// before the leader listens, it asks again only after this (5 s).
	streamCatchupStartInterval time.Duration
)

const heartbeat = 150 * time.Millisecond

func init() {
	minElectionTimeout, maxElectionTimeout, hbInterval = 4*heartbeat, 8*heartbeat, heartbeat
	lostQuorumInterval, lostQuorumCheck = 10*heartbeat, 10*heartbeat
	streamCatchupStartInterval = 4 * heartbeat
}
