package store_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

// gatewayVersion is the S3 server of these tests. It is built by itself, so
// that its many dependencies stay out of go.mod.
const gatewayVersion = "v1.8.0"

// buildGateway finds the S3 server where make setup-demo puts it, or puts it
// there.
var buildGateway = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs("../.cache")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.Command("go", "install", "github.com/versity/versitygw/cmd/versitygw@"+gatewayVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	cmd.Dir = os.TempDir() // outside of this module
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// gateway runs an S3 server over a folder and returns how to reach it.
func gateway(t *testing.T) store.S3Config {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs an S3 server; not in -short")
	}
	path, err := buildGateway()
	if err != nil {
		t.Skipf("versitygw cannot be had: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var log bytes.Buffer
	cmd := exec.Command(path, "--access", "tester", "--secret", "testsecret", "--port", addr, "--health", "/health", "posix", t.TempDir())
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Skipf("versitygw does not start: %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 100 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return store.S3Config{Endpoint: "http://" + addr, Region: "us-east-1", Bucket: "lode", Access: "tester", Secret: "testsecret", Create: true}
		}
		time.Sleep(50 * time.Millisecond)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if strings.Contains(log.String(), "xattr") {
		t.Skipf("versitygw needs a folder with extended attributes: %s", log.String())
	}
	t.Fatalf("versitygw does not answer: %s", log.String())
	return store.S3Config{}
}

func TestS3(t *testing.T) {
	cfg := gateway(t)
	n := 0
	fresh := func(t *testing.T) store.Home {
		n++
		c := cfg
		c.Prefix = fmt.Sprintf("p%d", n)
		h, err := store.OpenS3(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	t.Run("home", func(t *testing.T) { storetest.Home(t, fresh) })
	t.Run("store", func(t *testing.T) {
		storetest.Store(t, func(t *testing.T) *store.Store {
			return open(t, store.Config{Home: fresh(t), Cache: t.TempDir()})
		})
	})
	t.Run("large", func(t *testing.T) { s3Large(t, fresh(t)) })
	t.Run("refused", func(t *testing.T) { s3Refused(t, cfg) })
}

// s3Large: a blob of several parts, fetched by a second node.
func s3Large(t *testing.T, h store.Home) {
	content := storetest.Bytes(40<<20, 1)
	d, err := open(t, store.Config{Home: h, Cache: t.TempDir()}).PutBytes(t.Context(), content)
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, store.Config{Home: h, Cache: t.TempDir()})
	b, err := other.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if b.Fetched() != int64(len(content)) || other.Stats().Fetched != b.Fetched() {
		t.Errorf("Fetched = %d, Stats = %+v", b.Fetched(), other.Stats())
	}
}

func s3Refused(t *testing.T, cfg store.S3Config) {
	for name, c := range map[string]struct {
		change func(*store.S3Config)
		want   lode.Kind
	}{
		"bucket":   {func(c *store.S3Config) { c.Bucket, c.Create = "nobody", false }, lode.NotFound},
		"key":      {func(c *store.S3Config) { c.Secret = "wrong" }, lode.Denied},
		"endpoint": {func(c *store.S3Config) { c.Endpoint = "nonsense" }, lode.Invalid},
		"nobody":   {func(c *store.S3Config) { c.Endpoint, c.Retries = "http://127.0.0.1:1", 1 }, lode.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := cfg
			c.change(&c2)
			_, err := store.OpenS3(t.Context(), c2)
			storetest.Kind(t, err, c.want)
		})
	}
}

func TestParseS3(t *testing.T) {
	got, err := store.ParseS3("s3://bucket/a/b/")
	if err != nil || got.Bucket != "bucket" || got.Prefix != "a/b" {
		t.Errorf("ParseS3 = %+v, %v", got, err)
	}
	for _, bad := range []string{"", "bucket", "s3://", "http://x/y", "s3://b?x=1", "s3://\x7f"} {
		_, err := store.ParseS3(bad)
		storetest.Kind(t, err, lode.Invalid)
	}
}
