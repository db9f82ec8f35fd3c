package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"lode"
	"lode/api"
	"lode/data/reduce"
)

// bucket is an S3 server on loopback, in a process of its own.
type bucket struct {
	p      *process
	client *minio.Client
	addr   string // host:port
}

const bucketName = "demo"

func (r *runner) bucket(ctx context.Context) (*bucket, error) {
	path, err := versityPath()
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(r.dir, "bucket")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	b := &bucket{addr: fmt.Sprintf("127.0.0.1:%d", port)}
	cmd := exec.CommandContext(ctx, path, "--access", "demo", "--secret", "demosecret", "--port", b.addr, "--quiet", "posix", "--nometa", root)
	cmd.Stderr = r.stderr()
	if err := cmd.Start(); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "start the S3 server: %w", err)
	}
	b.p = &process{cmd: cmd}
	if b.client, err = minio.New(b.addr, &minio.Options{Creds: credentials.NewStaticV4("demo", "demosecret", "")}); err == nil {
		err = b.ready(ctx)
	}
	if err != nil {
		b.p.stop()
		return nil, err
	}
	return b, nil
}

func (b *bucket) ready(ctx context.Context) (err error) {
	for range 200 {
		var c net.Conn
		if c, err = net.Dial("tcp", b.addr); err == nil {
			c.Close()
			return b.client.MakeBucket(ctx, bucketName, minio.MakeBucketOptions{})
		}
		time.Sleep(50 * time.Millisecond)
	}
	return lode.Errorf(lode.Deadline, "the S3 server did not start: %w", err)
}

func (b *bucket) stop() { b.p.stop() }

// generation is what the first-generation way took.
type generation struct {
	took    time.Duration
	network int64
	result  []byte
}

// firstGeneration does the job as first-generation serverless does: the shards
// are in the bucket; an invocation for each fetches its shard over HTTP and
// writes its partial result back; then the partials are fetched and merged.
func (r *runner) firstGeneration(ctx context.Context, s *site, b *bucket, set, function lode.Name) (*generation, error) {
	m, err := s.GetManifest(ctx, set, 0)
	if err != nil {
		return nil, err
	}
	work := make([]shardWork, len(m.Shards))
	for i, sh := range m.Shards {
		if work[i], err = b.upload(ctx, s, set, i, sh); err != nil {
			return nil, err
		}
	}
	idx, err := s.indexes(ctx, set, m.Shards)
	if err != nil {
		return nil, err
	}
	for i := range work {
		work[i].Index = idx[i]
	}
	for i := range 2 { // a warm-up, as the other ways have
		g, err := b.round(ctx, s, function, work)
		if err != nil || i == 1 {
			return g, err
		}
	}
	panic("not reached")
}

// shardWork is the request of one invocation.
type shardWork struct {
	Get   string
	Put   string
	Index lode.FileIndex

	size    int64
	partial string // key
}

func (b *bucket) upload(ctx context.Context, s *site, set lode.Name, i int, sh lode.Shard) (w shardWork, err error) {
	key := fmt.Sprintf("%s/%d", set, i)
	w = shardWork{size: sh.Bytes, partial: key + ".partial"}
	c, err := s.ReadDataset(ctx, set, api.ReadOptions{Shard: i + 1})
	if err != nil {
		return w, err
	}
	defer c.Body.Close()
	if _, err = b.client.PutObject(ctx, bucketName, key, c.Body, sh.Bytes, minio.PutObjectOptions{}); err != nil {
		return w, lode.Errorf(lode.Unavailable, "upload shard %d: %w", i, err)
	}
	get, err := b.client.PresignedGetObject(ctx, bucketName, key, time.Hour, nil)
	if err != nil {
		return w, err
	}
	put, err := b.client.PresignedPutObject(ctx, bucketName, w.partial, time.Hour)
	if err != nil {
		return w, err
	}
	w.Get, w.Put = get.String(), put.String()
	return w, nil
}

// indexes tells the borders of the files of each shard: shards hold whole
// files, in the order in which the client reads them.
func (s *site) indexes(ctx context.Context, set lode.Name, shards []lode.Shard) ([]lode.FileIndex, error) {
	out := make([]lode.FileIndex, len(shards))
	var at int
	var end int64
	err := s.ReadFiles(ctx, set, 0, func(name string, size int64, _ io.Reader) error {
		for at < len(shards) && end == shards[at].Bytes {
			at, end = at+1, 0
		}
		if at == len(shards) {
			return lode.Errorf(lode.Internal, "dataset %s has more files than its shards hold", set)
		}
		end += size
		out[at].Names, out[at].Ends = append(out[at].Names, name), append(out[at].Ends, end)
		return nil
	})
	return out, err
}

func (b *bucket) round(ctx context.Context, s *site, function lode.Name, work []shardWork) (*generation, error) {
	g := &generation{}
	start := time.Now()
	partials := make([][]byte, len(work))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(runtime.NumCPU())
	for i, w := range work {
		body, err := json.Marshal(w)
		if err != nil {
			return nil, err
		}
		g.network += int64(len(body))
		eg.Go(func() error {
			status, got, err := s.post(ectx, "/fn/"+string(function), body)
			if err == nil && status != 200 {
				err = lode.Errorf(lode.Crashed, "shard %d: %d %s", i, status, got)
			}
			if err != nil {
				return err
			}
			o, err := b.client.GetObject(ectx, bucketName, w.partial, minio.GetObjectOptions{})
			if err != nil {
				return err
			}
			defer o.Close()
			var buf bytes.Buffer
			_, err = buf.ReadFrom(o)
			partials[i] = buf.Bytes()
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	red, err := reduce.ByName("merge")
	if err != nil {
		return nil, err
	}
	total := red.Zero()
	for i, p := range partials {
		g.network += work[i].size + 2*int64(len(p)) // beside the request: the shard, the partial there and back
		st, err := red.Parse(p, "application/json")
		if err == nil {
			total, err = total.Merge(ctx, st)
		}
		if err != nil {
			return nil, err
		}
	}
	g.result, _, err = total.Encode()
	g.took = time.Since(start)
	return g, err
}
