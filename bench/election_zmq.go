package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"

	"lode"
)

// zmqVoters are processes over ZeroMQ, and one that starts them, ends them and
// takes the time: plain/bully.c.
type zmqVoters struct {
	p   *process
	in  io.WriteCloser
	out *bufio.Reader
}

func (r *runner) zmqVoters(ctx context.Context, members int) (*zmqVoters, error) {
	bully, err := r.compileC(ctx, "bully.c", "-lzmq")
	if err != nil {
		return nil, lode.AsError(err).WithHint("bench/setup.sh tools installs ZeroMQ's headers")
	}
	cmd := exec.CommandContext(ctx, bully, fmt.Sprint(members), fmt.Sprint(messageTimeout))
	cmd.Stderr = r.stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start %s: %w", bully, err)
	}
	v := &zmqVoters{p: &process{cmd: cmd}, in: in, out: bufio.NewReader(out)}
	if line, err := v.out.ReadString('\n'); err != nil || line != "ready\n" {
		v.stop()
		return nil, lode.Errorf(lode.Unavailable, "the processes over ZeroMQ ended before they were ready")
	}
	return v, nil
}

func (v *zmqVoters) elect(_ context.Context, notice int) (e elected, err error) {
	if _, err := fmt.Fprintln(v.in, notice); err != nil {
		return e, lode.Errorf(lode.Unavailable, "the processes over ZeroMQ ended: %w", err)
	}
	line, err := v.out.ReadString('\n')
	if err != nil {
		return e, lode.Errorf(lode.Unavailable, "the processes over ZeroMQ elected nobody: %w", err)
	}
	if _, err := fmt.Sscan(line, &e.Leader, &e.Messages, &e.MS, &e.Timeouts); err != nil {
		return e, lode.Errorf(lode.Internal, "the processes over ZeroMQ said %q", line)
	}
	e.Rest = e.MS - e.Timeouts
	return e, nil
}

// stop ends them: they end with the one that has started them.
func (v *zmqVoters) stop() {
	v.in.Close()
	v.p.stop()
}

var _ voters = (*zmqVoters)(nil)
