package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"lode"
	"lode/api"
)

func benchScan(ctx context.Context, r *runner) error {
	s, err := r.node(ctx, "node")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := r.scanSum(ctx, s); err != nil {
		return err
	}
	return r.scanWords(ctx, s)
}

// numbers writes 1 GiB of 64-bit numbers below 2^31, so that no sum overflows.
func numbers(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	var b [8]byte
	for range size / 8 {
		binary.LittleEndian.PutUint64(b[:], uint64(rnd.Uint32()>>1))
		if _, err := w.Write(b[:]); err != nil {
			f.Close()
			return lode.Errorf(lode.Full, "write %s: %w", path, err)
		}
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return lode.Errorf(lode.Full, "write %s: %w", path, err)
	}
	return f.Close()
}

func (r *runner) scanSum(ctx context.Context, s *site) error {
	const size = 1 << 30
	file := filepath.Join(r.dir, "numbers")
	r.logf("  writing 1 GiB of numbers, twice")
	if err := numbers(file, size); err != nil {
		return err
	}
	guest, err := r.guest(ctx, "sum-c")
	if err != nil {
		return err
	}
	if err := s.deploy(ctx, "sum", guest, func(_ lode.Name, f *lode.Function) { f.Reduce = "sum" }, "sum"); err != nil {
		return err
	}
	if err := s.put(ctx, "numbers", api.PutOptions{Records: "fixed:8", Shard: 64 << 20}, []string{file}); err != nil {
		return err
	}
	plain, err := r.compileC(ctx, "sum.c")
	if err != nil {
		return err
	}
	ours, theirs, moved := make([]float64, r.Rounds), make([]float64, r.Rounds), make([]float64, r.Rounds)
	for i := -1; i < r.Rounds; i++ {
		took, job, got, err := s.job(ctx, api.JobSpec{Function: "sum", Dataset: "numbers"})
		if err != nil {
			return err
		}
		start := time.Now()
		want, err := exec.CommandContext(ctx, plain, file).Output()
		if err != nil {
			return lode.Errorf(lode.Internal, "the plain C program: %w", err)
		}
		other := time.Since(start)
		if string(bytes.TrimSpace(got)) != string(bytes.TrimSpace(want)) {
			return lode.Errorf(lode.Internal, "the job's sum is %s, the C program's %s", got, want)
		}
		if i >= 0 {
			ours[i], theirs[i] = size/took.Seconds()/1e9, size/other.Seconds()/1e9
			moved[i] = 100 * float64(job.Moved) / size
		}
	}
	r.ratio("sum over a mapped 1 GiB dataset, C guest with SIMD, against plain C on all cores", "GB/s", ours, theirs, ">= 0.4", "0.9")
	r.value("bytes over the network", "% of the dataset", moved, "<= 1 %", "results only")
	return nil
}

func (r *runner) scanWords(ctx context.Context, s *site) error {
	files, err := mailFiles()
	if err != nil {
		r.logf("  with Go's sources in place of the mails: %v", err)
		if files, err = goSources(); err != nil {
			return err
		}
	}
	bytes, err := sizeOf(files)
	if err != nil {
		return err
	}
	if err := s.put(ctx, "corpus", api.PutOptions{Records: lode.RecordsFiles, Shard: 16 << 20}, files); err != nil {
		return err
	}
	for _, g := range []struct{ name, guest string }{{"wordcount", "wordcount"}, {"nodigits", "filter-c"}} {
		a, err := r.guest(ctx, g.guest)
		if err != nil {
			return err
		}
		memory := func(_ lode.Name, f *lode.Function) { f.Limits.Memory = 512 << 20 }
		if err := s.deploy(ctx, lode.Name(g.name), a, memory, lode.Name(g.name)); err != nil {
			return err
		}
	}
	list, err := r.listFile(files)
	if err != nil {
		return err
	}
	for _, w := range []struct{ what, function, role, must, aim string }{
		{"word count of the corpus, Go guest, against plain parallel Go", "wordcount", "words", ">= 0.12", "0.25"},
		{"word count, built-in splitter with a guest filter, against plain parallel Go", "builtin:words:nodigits", "words-nodigits", ">= 0.5", "0.8"},
	} {
		ours, theirs := make([]float64, r.Rounds), make([]float64, r.Rounds)
		for i := -1; i < r.Rounds; i++ {
			took, _, got, err := s.job(ctx, api.JobSpec{Function: lode.Name(w.function), Dataset: "corpus"})
			if err != nil {
				return err
			}
			start := time.Now()
			want, err := exec.CommandContext(ctx, r.Self, "bench", "child", w.role, list).Output()
			if err != nil {
				return lode.Errorf(lode.Internal, "the plain Go program: %w", err)
			}
			other := time.Since(start)
			if i < 0 {
				if err := sameCounts(got, want); err != nil {
					return err
				}
				continue
			}
			ours[i], theirs[i] = float64(bytes)/took.Seconds()/1e6, float64(bytes)/other.Seconds()/1e6
		}
		r.ratio(w.what, "MB/s", ours, theirs, w.must, w.aim)
	}
	return nil
}

// job runs a job and returns how long it took, from the request for it to its
// result.
func (s *site) job(ctx context.Context, spec api.JobSpec) (time.Duration, api.Job, []byte, error) {
	start := time.Now()
	j, err := s.CreateJob(ctx, spec)
	for err == nil && !api.Ended(j.State) {
		j, err = s.GetJob(ctx, j.ID, 30*time.Second)
	}
	if err != nil {
		return 0, j, nil, err
	}
	if j.State != lode.StateDone {
		if j.Error != nil {
			return 0, j, nil, j.Error
		}
		return 0, j, nil, lode.Errorf(lode.Crashed, "job %s is %s", j.ID, j.State)
	}
	c, err := s.JobResult(ctx, j.ID)
	if err != nil {
		return 0, j, nil, err
	}
	defer c.Body.Close()
	b, err := io.ReadAll(c.Body)
	return time.Since(start), j, b, err
}

// put uploads files as a dataset.
func (s *site) put(ctx context.Context, name lode.Name, o api.PutOptions, files []string) error {
	u := &uploads{paths: files, root: commonFolder(files)}
	defer u.close()
	_, err := s.PutDataset(ctx, name, o, u)
	return err
}

// uploads yields files of this machine, named by their paths below root.
type uploads struct {
	root  string
	paths []string
	open  *os.File
}

// commonFolder is the deepest folder that all paths are in.
func commonFolder(paths []string) string {
	root := filepath.Dir(paths[0])
	for _, p := range paths {
		for !strings.HasPrefix(p, root+string(filepath.Separator)) && root != filepath.Dir(root) {
			root = filepath.Dir(root)
		}
	}
	return root
}

// Next opens the next file.
func (u *uploads) Next() (string, int64, io.Reader, error) {
	u.close()
	if len(u.paths) == 0 {
		return "", 0, nil, io.EOF
	}
	p := u.paths[0]
	u.paths = u.paths[1:]
	f, err := os.Open(p)
	if err != nil {
		return "", 0, nil, err
	}
	u.open = f
	st, err := f.Stat()
	if err != nil {
		return "", 0, nil, err
	}
	name, err := filepath.Rel(u.root, p)
	return filepath.ToSlash(name), st.Size(), f, err
}

func (u *uploads) close() {
	if u.open != nil {
		u.open.Close()
		u.open = nil
	}
}

// listFile writes the paths, one a line, for a child.
func (r *runner) listFile(files []string) (string, error) {
	path := filepath.Join(r.dir, fmt.Sprintf("list-%d", len(files)))
	return path, os.WriteFile(path, []byte(strings.Join(files, "\n")+"\n"), 0o600)
}

func sizeOf(files []string) (n int64, err error) {
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		n += st.Size()
	}
	return n, nil
}

// sameCounts compares two JSON objects of counts.
func sameCounts(a, b []byte) error {
	var x, y map[string]int64
	if err := json.Unmarshal(a, &x); err != nil {
		return lode.Errorf(lode.Internal, "the first result is no object of counts: %w", err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		return lode.Errorf(lode.Internal, "the second result is no object of counts: %w", err)
	}
	for k, n := range x {
		if y[k] != n {
			return lode.Errorf(lode.Internal, "the results differ: %q is counted %d and %d times", k, n, y[k])
		}
	}
	if len(x) != len(y) {
		return lode.Errorf(lode.Internal, "the results differ: %d and %d words", len(x), len(y))
	}
	return nil
}
