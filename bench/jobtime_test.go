package bench

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"lode"
	"lode/api"
)

// BenchmarkJob is the time of a whole job over one small shard.
func BenchmarkJob(b *testing.B) {
	self := os.Getenv("LODE_BINARY")
	if self == "" {
		b.Skip("LODE_BINARY is not set")
	}
	ctx := context.Background()
	r := &runner{dir: b.TempDir(), Options: Options{Self: self}}
	s, err := r.node(ctx, "node")
	if err != nil {
		b.Fatal(err)
	}
	defer s.stop()
	file := filepath.Join(r.dir, "numbers")
	if err := numbers(file, 1<<20); err != nil {
		b.Fatal(err)
	}
	guest, err := r.guest(ctx, "sum-c")
	if err != nil {
		b.Fatal(err)
	}
	if err := s.deploy(ctx, "sum", guest, func(_ lode.Name, f *lode.Function) { f.Reduce = "sum" }, "sum"); err != nil {
		b.Fatal(err)
	}
	if err := s.put(ctx, "numbers", api.PutOptions{Records: "fixed:8", Shard: 64 << 10}, []string{file}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, _, err := s.job(ctx, api.JobSpec{Function: "sum", Dataset: "numbers"}); err != nil {
			b.Fatal(err)
		}
	}
}
