package bus

import (
	"context"

	"lode"
)

// Remote is a cluster of the user's own.
type Remote struct {
	URL   string // nats://host:port, several with commas between
	Creds string // path of a credentials file; "": none
}

func (b *Bus) startRemote(ctx context.Context) error {
	return lode.Errorf(lode.Unavailable, "not yet")
}
