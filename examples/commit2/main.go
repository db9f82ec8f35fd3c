// Commit2 moves money between accounts by a two-phase commit. Accounts and the
// transfer are agents; they talk by send only. A message that is part of a turn
// takes effect with the turn, once: no answer is lost, none is counted twice, and
// a crash at any moment, of all nodes at once too, only delays the decision.
//
//	transfer/ID    open -> asking -> committed
//	                          |----> aborted     a no, or no vote in time
package main

import (
	"context"
	"fmt"
	"time"

	"lode/sdk/go"
)

// Order is a transfer of money.
type Order struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int    `json:"amount"`
	HoldMS int    `json:"hold_ms"` // how long to wait, once all have voted, before the decision: to have time for a crash
}

// Phase is where a transfer stands.
type Phase string

// The phases.
const (
	asking    Phase = "asking"
	prepared  Phase = "prepared" // all said yes; the decision is near
	committed Phase = "committed"
	aborted   Phase = "aborted"
)

// Transfer coordinates one transfer: agent transfer/ID.
type Transfer struct {
	Order Order
	Phase Phase
	Yes   map[string]bool // accounts that are prepared
	Why   string          // it was aborted
}

// Start asks both accounts to prepare. Whoever has not voted after ten seconds
// has said no.
func (t *Transfer) Start(ctx context.Context, o Order) error {
	if t.Phase != "" {
		return &lode.Error{Kind: lode.Conflict, Detail: "this transfer is " + string(t.Phase), Hint: "each transfer has a key of its own"}
	}
	if o.Amount <= 0 || o.From == o.To {
		return &lode.Error{Kind: lode.Invalid, Detail: "a transfer moves more than nothing between two accounts"}
	}
	t.Order, t.Phase = o, asking
	if err := lode.Timer(ctx, "decide", 10*time.Second, "timeout"); err != nil {
		return err
	}
	return t.tell(ctx, "prepare", -o.Amount, o.Amount)
}

// tell sends both accounts a message with this transfer's key.
func (t *Transfer) tell(ctx context.Context, method string, args ...int) error {
	for i, account := range []string{t.Order.From, t.Order.To} {
		all := lode.Args{lode.Self(ctx).Key}
		if len(args) > 0 {
			all = append(all, args[i])
		}
		if err := lode.Send(ctx, "account/"+account, method, all); err != nil {
			return err
		}
	}
	return nil
}

// Vote is what an account says.
func (t *Transfer) Vote(ctx context.Context, account string, yes bool, why string) error {
	if t.Phase != asking {
		return nil // too late: it was told to abort
	}
	if !yes {
		return t.abort(ctx, why)
	}
	if t.Yes[account] = true; len(t.Yes) < 2 {
		return nil
	}
	t.Phase = prepared
	return lode.Timer(ctx, "decide", time.Duration(t.Order.HoldMS)*time.Millisecond, "commit")
}

// Commit is the decision: from here on there is no way back.
func (t *Transfer) Commit(ctx context.Context) error {
	if t.Phase != prepared {
		return nil
	}
	t.Phase = committed
	return t.tell(ctx, "commit")
}

// Timeout ends a transfer that nobody has voted for in time.
func (t *Transfer) Timeout(ctx context.Context) error {
	if t.Phase != asking {
		return nil
	}
	return t.abort(ctx, "not all accounts have voted in time")
}

func (t *Transfer) abort(ctx context.Context, why string) error {
	t.Phase, t.Why = aborted, why
	if _, err := lode.ClearTimer(ctx, "decide"); err != nil {
		return err
	}
	return t.tell(ctx, "abort")
}

// Status is what a transfer says of itself.
type Status struct {
	Phase Phase  `json:"phase"`
	Why   string `json:"why,omitempty"`
}

// Show says where it stands. It only reads.
func (t *Transfer) Show() Status { return Status{t.Phase, t.Why} }

// Account holds money: agent account/NAME. What a transfer takes is held back
// from its vote on; what one brings is there when it is committed.
type Account struct {
	Balance int
	Pending map[string]int // amounts of transfers it has said yes to
}

// Deposit puts money in.
func (a *Account) Deposit(amount int) (int, error) {
	if amount <= 0 {
		return 0, &lode.Error{Kind: lode.Invalid, Detail: "a deposit is more than nothing"}
	}
	a.Balance += amount
	return a.Balance, nil
}

// Prepare votes: yes if there is enough that no other transfer has taken.
func (a *Account) Prepare(ctx context.Context, transfer string, amount int) error {
	free := a.Balance
	for _, p := range a.Pending {
		free += min(p, 0)
	}
	yes, why := free+amount >= 0, ""
	if yes {
		a.Pending[transfer] = amount
	} else {
		why = fmt.Sprintf("%s has %d free, not %d", lode.Self(ctx).Key, free, -amount)
	}
	return lode.Send(ctx, "transfer/"+transfer, "vote", lode.Args{lode.Self(ctx).Key, yes, why})
}

// Commit does what was prepared.
func (a *Account) Commit(transfer string) {
	a.Balance += a.Pending[transfer]
	delete(a.Pending, transfer)
}

// Abort forgets it.
func (a *Account) Abort(transfer string) { delete(a.Pending, transfer) }

// Sheet is what an account says of itself.
type Sheet struct {
	Balance int            `json:"balance"`
	Pending map[string]int `json:"pending"`
}

// Show says what is in it. It only reads.
func (a *Account) Show() Sheet { return Sheet{a.Balance, a.Pending} }

func main() {
	lode.Agent("transfer", func(string) *Transfer { return &Transfer{Yes: map[string]bool{}} }, "Show")
	lode.Agent("account", func(string) *Account { return &Account{Pending: map[string]int{}} }, "Show")
}
