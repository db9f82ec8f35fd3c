package wasm

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"sync"

	"github.com/tetratelabs/wazero"

	"lode"
)

// nativeKey names native code in the engine: a digest of the module it was made
// of, the engine's version and the processor's features.
type nativeKey = [32]byte

// errNative ends a compilation: what is loaded is never compiled.
var errNative = errors.New("native code is not there or not of this engine")

// natives is what the engine takes native code from, in place of its folder of
// files. Code is in it while it is loaded.
type natives struct {
	mu    sync.Mutex
	codes map[nativeKey][]byte
}

func (n *natives) put(key nativeKey, code []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.codes == nil {
		n.codes = map[nativeKey][]byte{}
	}
	n.codes[key] = code
}

func (n *natives) remove(key nativeKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.codes, key)
}

// Get gives the engine the code of a module. None is an error: the engine would
// compile the module, and its functions are empty.
func (n *natives) Get(key nativeKey) (io.ReadCloser, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, ok := n.codes[key]
	if !ok {
		return nil, false, errNative
	}
	return io.NopCloser(bytes.NewReader(b)), true, nil
}

// Add is for code that the engine compiled, of which there is none.
func (n *natives) Add(nativeKey, io.Reader) error { return errNative }

// Delete is for code of another version of the engine. An error keeps it from
// compiling.
func (n *natives) Delete(nativeKey) error { return errNative }

// capture takes native code from the engine as it is compiled, and afterwards,
// when asking is set, the key that the engine looks for.
type capture struct {
	code   []byte
	asking bool
	asked  nativeKey
}

// Get has nothing.
func (c *capture) Get(key nativeKey) (io.ReadCloser, bool, error) {
	if c.asking {
		c.asked = key
		return nil, false, errNative
	}
	return nil, false, nil
}

// Add takes the code.
func (c *capture) Add(_ nativeKey, r io.Reader) (err error) {
	var b bytes.Buffer
	if l, ok := r.(interface{ Len() int }); ok {
		b.Grow(l.Len() + bytes.MinRead)
	}
	_, err = b.ReadFrom(r)
	c.code = b.Bytes()
	return err
}

// Delete has nothing to do.
func (c *capture) Delete(nativeKey) error { return nil }

// fileCache is what the engine expects of its folder of files.
type fileCache interface {
	Get(nativeKey) (io.ReadCloser, bool, error)
	Add(nativeKey, io.Reader) error
	Delete(nativeKey) error
}

var (
	_ fileCache = (*natives)(nil)
	_ fileCache = (*capture)(nil)
)

// newCache makes a cache of the engine that keeps native code in f. The engine's
// API offers a folder only: a file written and read for each load.
func newCache(f fileCache) (wazero.CompilationCache, error) {
	c := wazero.NewCompilationCache()
	v := reflect.ValueOf(c)
	if v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
		field := v.Elem().FieldByName("fileCache")
		if field.IsValid() && field.Kind() == reflect.Interface && reflect.TypeOf(f).Implements(field.Type()) {
			reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(f))
			return c, nil
		}
	}
	return nil, lode.Errorf(lode.Internal, "this version of the engine keeps its native code elsewhere")
}
