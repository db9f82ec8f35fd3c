package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// LogEnd is the position of the newest message of a log, as its members have
// it; 0: it has none. It is what a ReadLog of everything goes to. NotFound:
// there is no such log.
func (b *Bus) LogEnd(ctx context.Context, name string) (uint64, error) {
	stream, _, err := logNames(name)
	if err != nil {
		return 0, err
	}
	var info *jetstream.StreamInfo
	err = b.read(ctx, func(ctx context.Context) error {
		st, err := b.js.Stream(ctx, stream)
		if err == nil {
			info, err = st.Info(ctx)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, lode.Errorf(lode.NotFound, "there is no log %s", name)
	}
	if err != nil {
		return 0, wrap(err, "read log %s", name)
	}
	return info.State.LastSeq, nil
}
