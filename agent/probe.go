package agent

import (
	"time"

	"lode/agent/journal"
)

// probe is what tests put between a Service and what it works with. The zero
// probe changes nothing.
type probe struct {
	// fault is told of each point that the Service reaches. An error ends what
	// it was about to do, as the death of the process would.
	fault func(point string) error
	// wrap puts something between the journal and its log.
	wrap func(journal.Log) journal.Log
	// backoff replaces the pauses after failures.
	backoff func(fails int) time.Duration
	// lease and detect are those of owner.Config.
	lease, detect time.Duration
}

// The points at which a Service can be stopped. Those between an append and its
// acknowledgement are reached by wrap.
const (
	pointApply    = "apply"    // a message is durable, and not in the local state
	pointApplied  = "applied"  // ... and in it, and nobody was told
	pointLoad     = "load"     // partitions are to be loaded
	pointLoaded   = "loaded"   // ... and were
	pointSave     = "save"     // a snapshot is to be taken
	pointSaved    = "saved"    // ... its blobs are durable
	pointSnapped  = "snapped"  // ... and written down
	pointSettled  = "settled"  // ... and the base of the partition given up
	pointTrim     = "trim"     // the front of the journal is to be removed
	pointTrimmed  = "trimmed"  // ... and was
	pointStopped  = "stopped"  // a partition that is to move runs no turn any more
	pointGone     = "gone"     // ... and is another node's
	pointSpilled  = "spilled"  // large values of a turn are durable, the turn is not written down
	pointDelivery = "delivery" // messages are on their way to their receiver
)

func (s *Service) reached(point string) error {
	if s.cfg.probe.fault == nil {
		return nil
	}
	return s.cfg.probe.fault(point)
}

// backoff is how long the turn of a message waits after so many failures.
func (s *Service) backoff(fails int) time.Duration {
	if s.cfg.probe.backoff != nil {
		return s.cfg.probe.backoff(fails)
	}
	return backoff(fails)
}

// wrapped is the log as the journal sees it.
func (s *Service) wrapped(log journal.Log) journal.Log {
	if s.cfg.probe.wrap == nil {
		return log
	}
	return s.cfg.probe.wrap(log)
}
