package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

// upload files given as name, content, name, content ...
type texts struct {
	files []string
	chunk int // bytes a read; 0: all
}

func (u *texts) Next() (string, int64, io.Reader, error) {
	if len(u.files) == 0 {
		return "", 0, nil, io.EOF
	}
	name, content := u.files[0], u.files[1]
	u.files = u.files[2:]
	r := io.Reader(strings.NewReader(content))
	if u.chunk > 0 {
		r = &slow{r, u.chunk}
	}
	return name, int64(len(content)), r, nil
}

// slow yields a few bytes a read.
type slow struct {
	r io.Reader
	n int
}

func (s *slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

func memStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Home: new(store.Mem), Cache: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// cutUp splits and reads the shards again.
func cutUp(t testing.TB, st *store.Store, records lode.Records, target int64, in Uploads) (shards [][]byte, out *splitter, err error) {
	t.Helper()
	f, err := formOf(records)
	if err != nil {
		t.Fatal(err)
	}
	out, err = split(context.Background(), st, f, target, nil, in, nil)
	if err != nil {
		return nil, out, err
	}
	for i, sh := range out.out {
		b, err := st.ReadAll(context.Background(), sh.Digest, 1<<30)
		if err != nil || int64(len(b)) != sh.Bytes {
			t.Fatalf("shard %d: %d bytes of %d, %v", i, len(b), sh.Bytes, err)
		}
		shards = append(shards, b)
	}
	return shards, out, nil
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name    string
		records lode.Records
		target  int64
		files   []string
		want    []string // shards
		header  string
	}{
		{"empty file", "lines", 10, []string{"a", ""}, nil, ""},
		{"no files", "lines", 10, nil, nil, ""},
		{"one line", "lines", 10, []string{"a", "x\n"}, []string{"x\n"}, ""},
		{"missing newline", "lines", 10, []string{"a", "x", "b", "y"}, []string{"x\ny\n"}, ""},
		{"cut before it is full", "lines", 5, []string{"a", "ab\ncd\nef\n"}, []string{"ab\n", "cd\n", "ef\n"}, ""},
		{"exactly full", "lines", 6, []string{"a", "ab\ncd\nef\n"}, []string{"ab\ncd\n", "ef\n"}, ""},
		{"longer than a shard", "lines", 4, []string{"a", "a\nlonger line\nb\n"}, []string{"a\n", "longer line\n", "b\n"}, ""},
		{"blank lines are records", "lines", 10, []string{"a", "\n\nx\n"}, []string{"\n\nx\n"}, ""},
		{"crlf stays", "lines", 10, []string{"a", "x\r\ny\r"}, []string{"x\r\ny\r\n"}, ""},
		{"csv", "csv", 8, []string{"a", "h,i\n1,2\n3,4\n5,6\n"}, []string{"1,2\n3,4\n", "5,6\n"}, "h,i\n"},
		{"csv quoted newline", "csv", 9, []string{"a", "h\n\"a\nb\",1\n\"c\"\"\nd\",2"}, []string{"\"a\nb\",1\n", "\"c\"\"\nd\",2\n"}, "h\n"},
		{"csv of two files", "csv", 99, []string{"a", "h\r\n1\r\n", "b", "h\n2", "c", ""}, []string{"1\r\n2\n"}, "h\n"},
		{"csv header alone", "csv", 99, []string{"a", "h"}, nil, "h\n"},
		{"csv byte order mark", "csv", 99, []string{"a", "\xef\xbb\xbfh\n1\n", "b", "h\n2\n"}, []string{"1\n2\n"}, "h\n"},
		{"ndjson", "ndjson", 99, []string{"a", "{\"a\":1}\n\n [2] \r\n3", "b", "\xef\xbb\xbf4\n  \n"}, []string{"{\"a\":1}\n [2] \r\n3\n4\n"}, ""},
		{"fixed", "fixed:2", 5, []string{"a", "aabbcc", "b", "dd"}, []string{"aabb", "ccdd"}, ""},
		{"files", "files", 5, []string{"a", "aaa", "b/c", "", "d", "dd", "e", "longer than a shard", "f", "f"},
			[]string{"aaadd", "longer than a shard", "f"}, ""},
		{"only empty files", "files", 5, []string{"a", "", "b", ""}, []string{""}, ""},
	} {
		for _, chunk := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("%s/%d", c.name, chunk), func(t *testing.T) {
				shards, s, err := cutUp(t, memStore(t), c.records, c.target, &texts{c.files, chunk})
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, b := range shards {
					got = append(got, string(b))
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("shards %q, want %q", got, c.want)
				}
				if string(s.header) != c.header {
					t.Errorf("header %q, want %q", s.header, c.header)
				}
			})
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	big := strings.Repeat("x", MaxRecord+1)
	for _, c := range []struct {
		name    string
		records lode.Records
		files   []string
		say     []string
	}{
		{"csv other header", "csv", []string{"a", "h\n1\n", "b", "i\n2\n"}, []string{"b ", `"i"`, `"h"`}},
		{"csv open quote", "csv", []string{"a", "h\n1\n2,\"x\ny\n"}, []string{"a, line 3", "quote"}},
		{"csv stray quote", "csv", []string{"a", "h\nab\"c\nd\n"}, []string{"a, line 2"}},
		{"ndjson", "ndjson", []string{"a", "1\n", "b", "{}\n\n{\"a\":}\n"}, []string{"b, line 3"}},
		{"ndjson unfinished", "ndjson", []string{"a", "{\"a\":"}, []string{"a, line 1"}},
		{"fixed", "fixed:4", []string{"a", "aaaabbb"}, []string{"a ", "7 bytes"}},
		{"long line", "lines", []string{"a", "x\n" + big}, []string{"a, line 2"}},
		{"long last line", "lines", []string{"a", big[1:]}, []string{"a, line 1"}},
		{"large file", "files", []string{"a", big}, []string{"a has"}},
		{"same name", "files", []string{"a", "1", "a", "2"}, []string{`"a"`, "twice"}},
		{"name outside", "files", []string{"../a", "1"}, []string{"../a"}},
		{"absolute name", "files", []string{"/a", "1"}, []string{"/a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := cutUp(t, memStore(t), c.records, 1<<20, &texts{files: c.files})
			storetest.Kind(t, err, lode.Invalid)
			for _, say := range c.say {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("%q does not say %q", err, say)
				}
			}
		})
	}
}

// The greatest record that is allowed passes, its newline included.
func TestGreatestRecord(t *testing.T) {
	line := strings.Repeat("x", MaxRecord-1)
	shards, _, err := cutUp(t, memStore(t), "lines", 1<<20, &texts{files: []string{"a", "a\n" + line + "\nb"}})
	if err != nil || len(shards) != 3 || len(shards[1]) != MaxRecord {
		t.Fatalf("%d shards, %v", len(shards), err)
	}
}

// oneFile is an upload of a single reader.
type oneFile struct {
	size int64
	r    io.Reader
	err  error // behind it
	done bool
}

func (u *oneFile) Next() (string, int64, io.Reader, error) {
	if u.done {
		return "", 0, nil, u.err
	}
	u.done = true
	return "f", u.size, u.r, nil
}

func TestCutShort(t *testing.T) {
	for _, records := range []lode.Records{"lines", "csv", "files", "fixed:1"} {
		for name, in := range map[string]Uploads{
			"fewer bytes":   &oneFile{size: 10, r: strings.NewReader("a\nb\n"), err: io.EOF},
			"more bytes":    &oneFile{size: 2, r: strings.NewReader("a\nb\n"), err: io.EOF},
			"reader fails":  &oneFile{size: -1, r: io.MultiReader(strings.NewReader("a\n"), iotest.ErrReader(io.ErrUnexpectedEOF)), err: io.EOF},
			"no more files": &oneFile{size: -1, r: strings.NewReader("a\n"), err: errors.New("connection reset")},
		} {
			t.Run(string(records)+"/"+name, func(t *testing.T) {
				_, _, err := cutUp(t, memStore(t), records, 1<<20, in)
				storetest.Kind(t, err, lode.Invalid)
				if !strings.Contains(err.Error(), "cut short") {
					t.Errorf("it does not say so: %v", err)
				}
			})
		}
	}
}

func TestParseRecords(t *testing.T) {
	for _, good := range []string{"lines", "csv", "ndjson", "files", "fixed:1", "fixed:67108864"} {
		if r, err := ParseRecords(good); err != nil || string(r) != good {
			t.Errorf("ParseRecords(%q) = %q, %v", good, r, err)
		}
	}
	for _, bad := range []string{"", "line", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:01", "fixed:1x", "fixed:67108865", "parquet"} {
		_, err := ParseRecords(bad)
		storetest.Kind(t, err, lode.Invalid)
	}
	if _, err := ParseRecords("line"); lode.AsError(err).Hint != `did you mean "lines"?` {
		t.Errorf("hint: %q", lode.AsError(err).Hint)
	}
}

// reference cuts a whole input into records the plain way, one byte at a time.
func reference(records lode.Records, file string) (out []string) {
	if records == "files" {
		return []string{file}
	}
	var rec []byte
	odd := false
	for i := range len(file) {
		c := file[i]
		rec = append(rec, c)
		odd = odd != (c == '"' && records == "csv")
		if c == '\n' && !odd {
			out = append(out, string(rec))
			rec = nil
		}
	}
	if len(rec) > 0 {
		out = append(out, string(rec)+"\n")
	}
	for i, r := range out {
		r = strings.TrimSuffix(r, "\n")
		out[i] = strings.TrimSuffix(r, "\r")
	}
	return out
}

// FuzzSplit: the records over all shards are the records of the input, in
// order, whatever the shard size and however the bytes arrive.
func FuzzSplit(f *testing.F) {
	for _, seed := range []string{"", "a\nb\n", "a,b\n\"x\ny\",\"\"\"\n\"\n", "\"\n\"\"\n", "\"", "a\"b\nc\"\n", "\r\n\r\n", "\xef\xbb\xbfa\n\xef\xbb\xbfb\n",
		"h\n" + strings.Repeat("\"a\nb\"\"c\",1\r\n", 20), strings.Repeat("x", 300), "{\"a\":\"\\n\"}\n[1]\n"} {
		for form := range byte(4) {
			f.Add(form, uint16(16), uint8(3), seed, "second\nfile")
		}
	}
	st := memStore(f)
	forms := []lode.Records{"lines", "csv", "files", "fixed:3"}
	f.Fuzz(func(t *testing.T, form byte, target uint16, chunk uint8, a, b string) {
		records := forms[int(form)%len(forms)]
		if records == "fixed:3" {
			a, b = a[:len(a)/3*3], b[:len(b)/3*3]
		}
		if records == "csv" { // one header for both
			a, b = "h,\"\n\"\n"+a, "h,\"\n\"\n"+b
		}
		in := &texts{[]string{"a", a, "b", b}, int(chunk)}
		shards, s, err := cutUp(t, st, records, max(1, int64(target)), in)
		if err != nil {
			odd := func(s string) bool { return strings.Count(s, `"`)%2 == 1 }
			if records == "csv" && (odd(a) || odd(b)) && lode.KindOf(err) == lode.Invalid {
				return
			}
			t.Fatal(err)
		}
		var got, want []string
		for i, shard := range shards {
			if int64(len(shard)) > max(1, int64(target)) && s.out[i].Count > 1 {
				t.Errorf("shard %d has %d bytes and %d records; at most %d", i, len(shard), s.out[i].Count, target)
			}
			n := int64(0)
			for rec := range recordsOf(t, st, records, shard, s.out[i]) {
				got = append(got, string(rec))
				n++
			}
			if n != s.out[i].Count {
				t.Errorf("shard %d has %d records; its count says %d", i, n, s.out[i].Count)
			}
		}
		for _, file := range []string{a, b} {
			switch records {
			case "fixed:3":
				for ; file != ""; file = file[3:] {
					want = append(want, file[:3])
				}
			case "csv":
				want = append(want, reference(records, file)[1:]...)
			default:
				want = append(want, reference(records, file)...)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: records %q, want %q", records, got, want)
		}
	})
}

func recordsOf(t *testing.T, st *store.Store, r lode.Records, shard []byte, sh lode.Shard) func(func([]byte) bool) {
	if r != "files" {
		return Records(shard, r)
	}
	ds, err := New(Config{Store: st, Registers: new(MemRegisters)})
	if err != nil {
		t.Fatal(err)
	}
	idx, err := ds.Index(t.Context(), &lode.Manifest{Records: r, Shards: []lode.Shard{sh}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func([]byte) bool) {
		for _, b := range Files(shard, idx) {
			if !yield(b) {
				return
			}
		}
	}
}

// Records never reads outside and never stops, whatever the bytes.
func FuzzRecords(f *testing.F) {
	f.Add("csv", []byte("a\"\n\"\nb"))
	f.Add("fixed:4", []byte("abcde"))
	f.Add("lines", []byte("\r\n\n\r"))
	f.Fuzz(func(t *testing.T, r string, shard []byte) {
		total := 0
		for rec := range Records(shard, lode.Records(r)) {
			total += len(rec)
		}
		if total > len(shard) {
			t.Errorf("%d bytes of records in %d", total, len(shard))
		}
		if r == "fixed:1" && total != len(shard) {
			t.Errorf("%d of %d bytes", total, len(shard))
		}
	})
}

func TestRecords(t *testing.T) {
	for _, c := range []struct {
		form, shard string
		want        []string
	}{
		{"lines", "a\r\nb\n\nc", []string{"a", "b", "", "c"}},
		{"csv", "\"a\r\nb\",1\r\nc\n", []string{"\"a\r\nb\",1", "c"}},
		{"fixed:2", "aabbc", []string{"aa", "bb", "c"}},
		{"files", "all", []string{"all"}},
		{"lines", "", nil},
	} {
		var got []string
		for r := range Records([]byte(c.shard), lode.Records(c.form)) {
			got = append(got, string(r))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s of %q: %q, want %q", c.form, c.shard, got, c.want)
		}
	}
	b := []byte("a\nb\n")
	for r := range Records(b, "lines") {
		if &r[0] != &b[0] || cap(r) != 1 {
			t.Error("a record is a copy, or reaches into the next")
		}
		break
	}
}
