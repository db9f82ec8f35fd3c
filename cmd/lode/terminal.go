package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"lode"
)

// isTerminal reports whether w is one; see terminal_*.go.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && fdIsTerminal(f)
}

// confirm asks a question, unless -y answers it. Without a terminal the
// answer is no, as an error that says what to add.
func (c *cli) confirm(question string) error {
	if c.flags.yes {
		return nil
	}
	if !isTerminal(c.in) || !isTerminal(c.err) {
		return lode.Errorf(lode.Invalid, "%s", question).WithHint("there is no terminal to ask at: add -y")
	}
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	line, _ := bufio.NewReader(c.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return lode.Errorf(lode.Cancelled, "nothing was changed")
}

// value reads a secret from stdin: at a terminal without an echo. One line
// break at the end is dropped.
func (c *cli) value(prompt string) ([]byte, error) {
	if f, ok := c.in.(*os.File); ok && fdIsTerminal(f) {
		fmt.Fprintf(c.err, "%s: ", prompt)
		restore := echoOff(f)
		defer restore()
		line, err := bufio.NewReader(f).ReadString('\n')
		fmt.Fprintln(c.err)
		if err != nil && line == "" {
			return nil, lode.Errorf(lode.Cancelled, "nothing was entered")
		}
		return []byte(strings.TrimRight(line, "\r\n")), nil
	}
	b, err := io.ReadAll(io.LimitReader(c.in, 1<<20))
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "stdin: %w", err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return nil, lode.Errorf(lode.Invalid, "stdin is empty").WithHint("values come from stdin: printf %%s \"$VALUE\" | lode ...")
	}
	return []byte(s), nil
}

// bar is a progress bar on a terminal, and nothing elsewhere. Its methods may
// be called from several goroutines.
type bar struct {
	w     io.Writer
	label string
	bytes bool // total counts bytes

	mu    sync.Mutex
	total int64
	done  int64
	note  string
	start time.Time
	drawn time.Time
	lastN int // columns drawn
}

// newBar makes a bar; w nil draws nothing.
func (c *cli) newBar(label string, total int64, bytes bool) *bar {
	b := &bar{label: label, total: total, bytes: bytes, start: time.Now()}
	if !c.flags.quiet && isTerminal(c.err) && c.getenv("TERM") != "dumb" {
		b.w = c.err
	}
	return b
}

// add moves the bar by n.
func (b *bar) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += n
	b.draw(false)
}

// set puts the bar at done of total.
func (b *bar) set(done, total int64, note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.total, b.note = done, total, note
	b.draw(false)
}

// end takes the bar off the terminal.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w != nil && b.lastN > 0 {
		fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", b.lastN))
		b.lastN = 0
	}
}

const barWidth = 30

func (b *bar) draw(force bool) {
	now := time.Now()
	if b.w == nil || !force && now.Sub(b.drawn) < 50*time.Millisecond {
		return
	}
	b.drawn = now
	share := 0.0
	if b.total > 0 {
		share = min(1, float64(b.done)/float64(b.total))
	}
	full := int(share * barWidth)
	amount := fmt.Sprintf("%d/%d", b.done, b.total)
	if b.bytes {
		amount = size(b.done) + "/" + size(b.total)
		if s := now.Sub(b.start).Seconds(); s > 0.5 {
			amount += ", " + size(int64(float64(b.done)/s)) + "/s"
		}
	}
	line := fmt.Sprintf("%s [%s%s] %3.0f%% %s %s", b.label, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), share*100, amount, b.note)
	if n := len(line); n < b.lastN {
		line += strings.Repeat(" ", b.lastN-n)
	}
	b.lastN = len(strings.TrimRight(line, " "))
	fmt.Fprintf(b.w, "\r%s", line)
}
