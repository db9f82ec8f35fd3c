//go:build linux

package cut

import (
	"context"
	"fmt"
	"strings"

	"lode"
	"lode/api"
)

// writes are all kinds of writes at a node.
func (p *process) writes() map[string]func(context.Context) error {
	call := func(ctx context.Context, v api.Invocation) error {
		a, err := p.api.Invoke(ctx, v)
		if err != nil {
			return err
		}
		return a.Body.Close()
	}
	return map[string]func(context.Context) error{
		"deploy": func(ctx context.Context) error {
			_, err := p.api.Deploy(ctx, p.c.app(int(p.c.version.Add(1))), api.DeployOptions{})
			return err
		},
		"secret": func(ctx context.Context) error { return p.api.SetSecret(ctx, "LATE", []byte("x")) },
		"token": func(ctx context.Context) error {
			_, err := p.api.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead})
			return err
		},
		"join token": func(ctx context.Context) error {
			_, err := p.api.CreateJoinToken(ctx, api.JoinSpec{})
			return err
		},
		"asynchronous call": func(ctx context.Context) error {
			return call(ctx, api.Invocation{Function: "web", Path: "/once", Async: true})
		},
		"call under a key": func(ctx context.Context) error {
			return call(ctx, api.Invocation{Function: "web", Path: "/once", Key: fmt.Sprint("late-", p.c.serial.Add(1))}) // a known one is only read
		},
		"message": func(ctx context.Context) error {
			a := p.post("/queues/work", "late", "Content-Type", "text/plain")
			return a.problem()
		},
		"dataset": func(ctx context.Context) error {
			_, err := p.api.PutStream(ctx, "late", api.PutOptions{Records: lode.RecordsLines}, "late", strings.NewReader("one\ntwo\n"))
			return err
		},
		"job": func(ctx context.Context) error {
			_, err := p.api.CreateJob(ctx, api.JobSpec{Function: "web", Dataset: "base"})
			return err
		},
	}
}
