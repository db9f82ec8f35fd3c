package bus

import (
	"context"
	"encoding/json"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// getRequest asks the leader of a stream for one message. (Any replica may
// answer the other, cheaper question, also one that lags behind.)
type getRequest struct {
	Seq  uint64 `json:"seq,omitempty"`
	Last string `json:"last_by_subj,omitempty"`
}

type getAnswer struct {
	Error   *jetstream.APIError `json:"error"`
	Message struct {
		Subject string `json:"subject"`
		Seq     uint64 `json:"seq"`
		Header  []byte `json:"hdrs"`
		Data    []byte `json:"data"`
	} `json:"message"`
}

// get returns a message as its leader has it; ErrMsgNotFound if there is none.
func (b *Bus) get(ctx context.Context, stream string, r getRequest) (*jetstream.RawStreamMsg, error) {
	ask, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, ask)
	if err != nil {
		return nil, err
	}
	var a getAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return nil, err
	}
	if a.Error != nil {
		if a.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound {
			return nil, jetstream.ErrMsgNotFound
		}
		return nil, a.Error
	}
	out := &jetstream.RawStreamMsg{Subject: a.Message.Subject, Sequence: a.Message.Seq, Data: a.Message.Data}
	if len(a.Message.Header) > 0 {
		if out.Header, err = nats.DecodeHeadersMsg(a.Message.Header); err != nil {
			return nil, err
		}
	}
	return out, nil
}
