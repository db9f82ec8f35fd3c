package member

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"lode"
)

// RenewalConfig says whose certificate is renewed. Identity and Authority are
// needed.
type RenewalConfig struct {
	Identity  *Identity
	Authority *Authority
	// Renewed is called after each renewal, with a context that ends with the
	// Renewal; its error is logged. Members.Renewed is one.
	Renewed func(ctx context.Context) error
	// Clock is the machine's where it is nil.
	Clock  Clock
	Logger *slog.Logger // nil: slog.Default
}

// Renewal keeps an identity's certificate valid: at two thirds of its life it
// takes a new one for the same key. While that fails, because the bus is out,
// the old one is used.
type Renewal struct {
	cfg     RenewalConfig
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Times of renewal.
const (
	renewLook  = time.Hour // longest time without a look at the clock, which may jump
	renewFirst = time.Second
	renewMost  = 10 * time.Minute
	renewFor   = 30 * time.Second
)

// Renew begins to keep a certificate valid. Close the Renewal.
func Renew(cfg RenewalConfig) *Renewal {
	cfg.Clock, cfg.Logger = orWall(cfg.Clock), cmp.Or(cfg.Logger, slog.Default())
	r := &Renewal{cfg: cfg}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.running.Go(r.run)
	return r
}

// Close ends it. It may be called again.
func (r *Renewal) Close() error {
	r.stop()
	r.running.Wait()
	return nil
}

func (r *Renewal) run() {
	for failed := 0; r.ctx.Err() == nil; {
		wait := renewIn(r.cfg.Identity.now().leaf.NotBefore.Add(backdated), r.cfg.Identity.Expires(), r.cfg.Clock.Now())
		if wait <= 0 {
			if err := r.renew(); err != nil {
				r.complain(err)
				wait = backoff(failed, renewFirst, renewMost)
				failed++
			} else {
				wait, failed = renewMost, 0
			}
		}
		if r.cfg.Clock.Sleep(r.ctx, min(wait, renewLook)) != nil {
			return
		}
	}
}

// renewIn is how long to wait until a certificate has to be renewed.
func renewIn(from, to, now time.Time) time.Duration {
	return from.Add(to.Sub(from) / 3 * 2).Sub(now)
}

func (r *Renewal) renew() error {
	ctx, cancel := context.WithTimeout(r.ctx, renewFor)
	defer cancel()
	if err := r.cfg.Identity.renew(ctx, r.cfg.Authority); err != nil {
		return err
	}
	r.cfg.Logger.Info("renewed this node's certificate", "until", stamp(r.cfg.Identity.Expires()))
	if r.cfg.Renewed != nil {
		if err := r.cfg.Renewed(ctx); err != nil {
			r.cfg.Logger.Warn("the new certificate's serial is not in this node's record; it works without", "error", err)
		}
	}
	return nil
}

func (r *Renewal) complain(err error) {
	if r.ctx.Err() != nil {
		return
	}
	if bad := r.cfg.Identity.Valid(); bad != nil {
		r.cfg.Logger.Error(bad.Error(), "hint", lode.AsError(bad).Hint, "renewal", err)
		return
	}
	r.cfg.Logger.Warn("cannot renew this node's certificate yet; the old one is used", "until", stamp(r.cfg.Identity.Expires()), "error", err)
}
