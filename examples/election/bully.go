package main

// Bully is one member's part in Garcia-Molina's bully algorithm (1982): the
// living member of the highest rank shall lead, and all others shall know it.
// It decides and does nothing: what is to be sent and waited for is in the Step
// that it returns, so that the same rules run over messages and over a
// blackboard.
//
//	        notice, or asked by a lower one
//	idle ------------------------------------> asked     "is anybody above me?"
//	asked ------- an answer ----------------> promised   somebody is: he shall say who leads
//	asked ------- no answer in Timeout -----> idle       I lead, and tell those below
//	promised ---- coordinator --------------> idle
//	promised ---- nothing in 5 Timeout -----> asked      he died too: again, and wait twice as long
type Bully struct {
	Rank, Members int
	TimeoutMS     int
	Round         int // messages of earlier ones are stale
	Leader        int // nobody: not known
	Stage         Stage
	Down          bool // it plays dead: hears nothing, says nothing
	Sent          Count
	Again         int // elections of this round that came to nothing
	WaitedMS      int // time-outs of this round that passed
}

// nobody is the leader while none is known.
const nobody = -1

// Stage is where a member stands.
type Stage string

// The stages.
const (
	idle     Stage = ""
	asked    Stage = "asked"
	promised Stage = "promised"
)

// Word is what one member tells another.
type Word string

// The words.
const (
	election    Word = "election"    // to everybody above: I want to lead
	answer      Word = "answer"      // to somebody below: you shall not
	coordinator Word = "coordinator" // to everybody below: I lead
)

// Message is a word of somebody in a round.
type Message struct {
	Word  Word `json:"word"`
	From  int  `json:"from"`
	Round int  `json:"round"`
}

// Letter is a message on its way.
type Letter struct {
	To int `json:"to"`
	Message
}

// Count counts messages by their words.
type Count struct {
	Elections    int `json:"elections"`
	Answers      int `json:"answers"`
	Coordinators int `json:"coordinators"`
}

func (c Count) sum() int { return c.Elections + c.Answers + c.Coordinators }

func (c Count) add(o Count, sign int) Count {
	return Count{c.Elections + sign*o.Elections, c.Answers + sign*o.Answers, c.Coordinators + sign*o.Coordinators}
}

// Step is what follows from something that happened.
type Step struct {
	Letters []Letter
	WaitMS  int  // more than 0: call late after that time, instead of what was waited for before
	Rest    bool // nothing is waited for any more
}

// notice begins an election, since the leader does not answer. A member that
// comes back to life does the same.
func (b *Bully) notice(round int) Step {
	if b.Down || round < b.Round {
		return Step{}
	}
	b.enter(round)
	return b.ask()
}

// hear takes a message.
func (b *Bully) hear(m Message) Step {
	if b.Down || m.Round < b.Round {
		return Step{}
	}
	b.enter(m.Round)
	switch {
	case m.Word == election:
		return b.asked(m.From)
	case m.Word == answer && b.Stage == asked:
		b.Stage = promised
		return Step{WaitMS: b.patience()}
	case m.Word == coordinator && m.From < b.Rank:
		return b.ask() // not while I live
	case m.Word == coordinator && m.From < b.Leader:
		return Step{} // his time-out was too short: I know better
	case m.Word == coordinator:
		b.Leader, b.Stage = m.From, idle
		return Step{Rest: true}
	}
	return Step{}
}

// late is told that a time-out has passed that was set in a round and stage.
func (b *Bully) late(round int, in Stage) Step {
	if b.Down || round != b.Round || in != b.Stage {
		return Step{}
	}
	switch b.Stage {
	case asked:
		b.WaitedMS += b.TimeoutMS
		return b.win()
	case promised:
		b.WaitedMS += b.patience()
		b.Again++
		return b.ask()
	}
	return Step{}
}

// patience is how long a member that was answered waits for the coordinator. It
// doubles, since a time-out that is too short for all the messages would only
// make more of them.
func (b *Bully) patience() int { return 5 * b.TimeoutMS << min(b.Again, 10) }

// enter begins a round that is new to it.
func (b *Bully) enter(round int) {
	if round > b.Round {
		b.Round, b.Leader, b.Stage, b.Sent, b.Again, b.WaitedMS = round, nobody, idle, Count{}, 0, 0
	}
}

// ask asks everybody above. The member of the highest rank need not ask.
func (b *Bully) ask() Step {
	b.Leader = nobody
	if b.Rank == b.Members-1 {
		return b.win()
	}
	b.Stage = asked
	s := Step{WaitMS: b.TimeoutMS}
	for to := b.Rank + 1; to < b.Members; to++ {
		s.Letters = append(s.Letters, b.letter(to, election))
	}
	b.Sent.Elections += len(s.Letters)
	return s
}

// asked answers somebody below, and holds an election of its own. This is what
// makes n*n/2 messages when a low member begins: each one that is asked asks
// all those above itself.
func (b *Bully) asked(from int) Step {
	if b.Leader == b.Rank { // he came late
		b.Sent.Coordinators++
		return Step{Letters: []Letter{b.letter(from, coordinator)}}
	}
	b.Sent.Answers++
	reply := b.letter(from, answer)
	var s Step
	if b.Stage == idle {
		s = b.ask()
	}
	s.Letters = append(s.Letters, reply)
	return s
}

// win tells everybody below.
func (b *Bully) win() Step {
	b.Leader, b.Stage = b.Rank, idle
	s := Step{Rest: true}
	for to := range b.Rank {
		s.Letters = append(s.Letters, b.letter(to, coordinator))
	}
	b.Sent.Coordinators += len(s.Letters)
	return s
}

func (b *Bully) letter(to int, w Word) Letter { return Letter{to, Message{w, b.Rank, b.Round}} }
