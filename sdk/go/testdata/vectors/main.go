// The Go SDK's side of the ABI vectors.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"lode/sdk/abi"
	"lode/sdk/go"
)

func main() {
	lode.Agent[vector]("vector", nil, "Get")
	lode.HandleNamed("recode", recode)
	lode.HandleNamed("ten", ten)
	lode.HandleNamed("error", func(ctx context.Context) []byte {
		_, err := lode.Call[[]byte](ctx, "nobody", "")
		return []byte(lode.KindOf(err))
	})
	lode.HandleNamed("copy", func(r io.Reader) io.Reader { return r })
	lode.HandleNamed("secret", func(ctx context.Context) ([]byte, error) {
		s, err := lode.Secret(ctx, "KEY")
		return []byte(s), err
	})
	lode.HandleNamed("config", func(ctx context.Context) ([]byte, error) {
		s, err := lode.Config(ctx, "MODE")
		return []byte(s), err
	})
	lode.HandleNamed("fetch", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := lode.Fetch().Get("http://example.com/x")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	}))
	lode.HandleNamed("log", func() { slog.Warn("hello") })
	lode.HandleNamed("fail", func() error { return errors.New("short and stout") })
}

func recode(raw []byte) []byte {
	var pairs [][2]string
	body, err := abi.Decode(raw, func(k, v []byte) { pairs = append(pairs, [2]string{string(k), string(v)}) })
	if err != nil {
		return []byte("malformed")
	}
	out := abi.AppendHead(nil, len(pairs))
	for _, p := range pairs {
		out = abi.AppendPair(out, p[0], p[1])
	}
	return append(out, body...)
}

func ten(ctx context.Context) ([]byte, error) {
	var out [10]string
	var wg sync.WaitGroup
	var failed error
	for i := range out {
		wg.Go(func() {
			b, err := lode.Call[[]byte](ctx, "echo", "", []byte{byte('0' + i)})
			if err != nil {
				failed = err
			}
			out[i] = string(b)
		})
	}
	wg.Wait()
	return []byte(strings.Join(out[:], "")), failed
}
