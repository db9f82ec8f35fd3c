package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lode"
)

func lambdaWorld() *world {
	w := newWorld()
	w.logs = "a line\nanother\n"
	w.deploy("upper", lode.Function{Limits: lode.Limits{Memory: 256 << 20}}, func(_ context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		if err := a.Head(200, nil); err != nil {
			return lode.Usage{}, err
		}
		for _, piece := range strings.SplitAfter(strings.ToUpper(string(req.Body)), ",") {
			if _, err := a.Write([]byte(piece)); err != nil {
				return lode.Usage{}, err
			}
		}
		return lode.Usage{Wall: 1500 * time.Microsecond, Memory: 3 << 20}, nil
	})
	w.deploy("broken", lode.Function{}, func(context.Context, *lode.Request, lode.Answer) (lode.Usage, error) {
		e := lode.Errorf(lode.Crashed, "it crashed")
		e.Guest = &lode.GuestError{Type: "ValueError", Message: "no", Stack: []string{"at f"}}
		return lode.Usage{}, e
	})
	w.deploy("slow", lode.Function{}, func(context.Context, *lode.Request, lode.Answer) (lode.Usage, error) {
		return lode.Usage{}, lode.Errorf(lode.Deadline, "after 3 s")
	})
	w.deploy("busy", lode.Function{}, func(context.Context, *lode.Request, lode.Answer) (lode.Usage, error) {
		e := lode.Errorf(lode.Overloaded, "1000 wait already")
		e.RetryAfter = 1500 * time.Millisecond
		return lode.Usage{}, e
	})
	w.deploy("huge", lode.Function{Limits: lode.Limits{OutputMax: 10, Body: 100}}, func(_ context.Context, _ *lode.Request, a lode.Answer) (lode.Usage, error) {
		_ = a.Head(200, nil)
		_, err := a.Write(make([]byte, 11))
		return lode.Usage{}, err
	})
	w.deploy("hidden", lode.Function{Access: lode.AccessInternal}, echo)
	return w
}

func invocations(name string) string { return "/2015-03-31/functions/" + name + "/invocations" }

func TestLambdaInvoke(t *testing.T) {
	w := lambdaWorld()
	_, url := w.start(t, nil)
	for _, c := range []struct {
		name, path, body string
		head             []string
		status           int
		want             string // body, or "Code: part of the message"
		errorHeader      string
	}{
		{"plain", invocations("upper"), `{"a":"b"}`, nil, 200, `{"A":"B"}`, ""},
		{"no payload", invocations("upper"), "", nil, 200, "", ""},
		{"signed", invocations("upper"), `"x"`, []string{"Authorization", "AWS4-HMAC-SHA256 Credential=A/20260101/r/lambda/aws4_request, SignedHeaders=host, Signature=00"}, 200, `"X"`, ""},
		{"arn", invocations("arn:aws:lambda:eu-west-1:123456789012:function:upper"), `"x"`, nil, 200, `"X"`, ""},
		{"arn, escaped", invocations("arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Aupper%3Alive"), `"x"`, nil, 200, `"X"`, ""},
		{"partial arn", invocations("123456789012:function:upper:3"), `"x"`, nil, 200, `"X"`, ""},
		{"qualifiers differ", invocations("upper:1") + "?Qualifier=2", `"x"`, nil, 400, "InvalidParameterValueException: derived qualifier", ""},
		{"unknown", invocations("uper"), `1`, nil, 404, `ResourceNotFoundException: did you mean \"upper\"`, ""},
		{"capitals", invocations("Upper"), `1`, nil, 404, "ResourceNotFoundException: lower case", ""},
		{"bad name", invocations("a b"), `1`, nil, 400, "ValidationException: functionName", ""},
		{"bad type", invocations("upper"), `1`, []string{"X-Amz-Invocation-Type", "Later"}, 400, "InvalidParameterValueException: invocationType", ""},
		{"bad log type", invocations("upper"), `1`, []string{"X-Amz-Log-Type", "Head"}, 400, "InvalidParameterValueException: logType", ""},
		{"context too long", invocations("upper"), `1`, []string{"X-Amz-Client-Context", strings.Repeat("x", 4000)}, 400, "InvalidParameterValueException: 3583", ""},
		{"no json", invocations("upper"), `{`, nil, 400, "InvalidRequestContentException: parse request body", ""},
		{"crash", invocations("broken"), `1`, nil, 200, `{"errorType":"ValueError","errorMessage":"no","stackTrace":["at f"]}`, "Unhandled"},
		{"timeout", invocations("slow"), `1`, nil, 200, `"errorType":"Sandbox.Timedout"`, "Unhandled"},
		{"throttled", invocations("busy"), `1`, nil, 429, "TooManyRequestsException: 1000 wait", ""},
		{"answer too large", invocations("huge"), `1`, nil, 200, `"errorType":"Function.ResponseSizeTooLarge"`, "Unhandled"},
		{"request too large", invocations("huge"), `"` + strings.Repeat("x", 200) + `"`, nil, 413, "RequestTooLargeException: Request must be smaller", ""},
		{"internal", invocations("hidden"), `1`, nil, 403, "AccessDeniedException: internal", ""},
		{"other operation", "/2015-03-31/functions", `1`, nil, 404, "UnknownOperationException: lode deploy", ""},
		{"browser", invocations("upper"), `1`, []string{"Origin", "http://evil.example"}, 403, "AccessDeniedException: origin", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := do(t, "POST", url+c.path, c.body, c.head...)
			code, part, isError := strings.Cut(c.want, "Exception: ")
			if isError {
				var e struct{ Type, Message string }
				if err := json.Unmarshal([]byte(body), &e); err != nil || e.Type != "User" || e.Message == "" {
					t.Errorf("error body %s: %v", body, err)
				}
				if res.Header.Get("X-Amzn-Errortype") != code+"Exception" || res.Header.Get("Lode-Error") == "" || !strings.Contains(body, part) {
					t.Errorf("%v %s", res.Header, body)
				}
			} else if !strings.Contains(body, c.want) || c.want == "" && body != "" || res.Header.Get("X-Amz-Executed-Version") != "7" || res.Header.Get("Lode-Error") != "" {
				t.Errorf("%v %s", res.Header, body)
			}
			if res.StatusCode != c.status || res.Header.Get("X-Amz-Function-Error") != c.errorHeader {
				t.Errorf("status %d %v", res.StatusCode, res.Header)
			}
		})
	}
}

func TestLambdaTypes(t *testing.T) {
	w := lambdaWorld()
	_, url := w.start(t, nil)
	res, body := do(t, "POST", url+invocations("upper")+"?Qualifier=blue", `{"n":1}`, "X-Amz-Invocation-Type", "Event", "X-Amz-Client-Context", "e30=", "Authorization", "AWS4-HMAC-SHA256 x")
	if res.StatusCode != 202 || body != "" {
		t.Fatal(res.StatusCode, body)
	}
	if len(w.submitted) != 1 {
		t.Fatalf("submitted %+v", w.submitted)
	}
	s := w.submitted[0]
	m := lode.Message{Head: s.Head}
	if string(s.Body) != `{"n":1}` || s.Alias != "blue" || s.Trigger != lode.TriggerAsync || m.Get("x-amz-client-context") != "e30=" || m.Get("authorization") != "" || string(s.ID) != res.Header.Get("X-Amzn-Requestid") {
		t.Errorf("submitted %+v", s)
	}
	if res, _ := do(t, "POST", url+invocations("broken"), `1`, "X-Amz-Invocation-Type", "DryRun"); res.StatusCode != 204 {
		t.Errorf("dry run: %d", res.StatusCode)
	}
	res, _ = do(t, "POST", url+invocations("upper"), `1`, "X-Amz-Log-Type", "Tail")
	log, err := base64.StdEncoding.DecodeString(res.Header.Get("X-Amz-Log-Result"))
	if err != nil || !strings.Contains(string(log), "a line\nanother\nEND RequestId: ") || !strings.Contains(string(log), "Duration: 1.50 ms\tBilled Duration: 2 ms\tMemory Size: 256 MB\tMax Memory Used: 3 MB") {
		t.Errorf("log %q: %v", log, err)
	}
	w.logs = strings.Repeat("0123456789\n", 1000)
	res, _ = do(t, "POST", url+invocations("upper"), `1`, "X-Amz-Log-Type", "Tail")
	if log, _ = base64.StdEncoding.DecodeString(res.Header.Get("X-Amz-Log-Result")); len(log) != 4096 {
		t.Errorf("%d bytes of log", len(log))
	}
}

// decodeEvents is the other end of appendEvent, strict.
func decodeEvents(b []byte) (events []map[string]string, err error) {
	for len(b) > 0 {
		if len(b) < 16 {
			return nil, fmt.Errorf("%d bytes are no event", len(b))
		}
		total, headers := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if uint32(len(b)) < total || total < headers+16 || crc32.ChecksumIEEE(b[:8]) != binary.BigEndian.Uint32(b[8:]) || crc32.ChecksumIEEE(b[:total-4]) != binary.BigEndian.Uint32(b[total-4:]) {
			return nil, fmt.Errorf("bad frame %x", b)
		}
		e := map[string]string{"": string(b[12+headers : total-4])}
		for h := b[12 : 12+headers]; len(h) > 0; {
			n := int(h[0])
			v := int(binary.BigEndian.Uint16(h[n+2:]))
			e[string(h[1:n+1])] = string(h[n+4 : n+4+v])
			h = h[n+4+v:]
		}
		events = append(events, e)
		b = b[total:]
	}
	return events, nil
}

// TestEventVector checks the bytes against two of the published vectors of the
// encoding: an empty message, and a payload without headers.
func TestEventVector(t *testing.T) {
	for _, c := range []struct{ payload, want string }{
		{"", "000000100000000005c248eb7d98c8ff"},
		{"{'foo':'bar'}", "0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936"},
	} {
		if got := hex.EncodeToString(appendEvent(nil, nil, []byte(c.payload))); got != c.want {
			t.Errorf("%q is %s, want %s", c.payload, got, c.want)
		}
	}
}

func TestLambdaStream(t *testing.T) {
	w := lambdaWorld()
	_, url := w.start(t, nil)
	for _, c := range []struct{ name, fn, body, want, code string }{
		{"chunks", "upper", `"a,b,c"`, `"A,|B,|C"|`, ""},
		{"failed", "broken", `1`, "", "ValueError"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := do(t, "POST", url+"/2021-11-15/functions/"+c.fn+"/response-streaming-invocations", c.body, "X-Amz-Log-Type", "Tail")
			if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/vnd.amazon.eventstream" {
				t.Fatal(res.StatusCode, res.Header, body)
			}
			events, err := decodeEvents([]byte(body))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, e := range events[:len(events)-1] {
				if e[":event-type"] != "PayloadChunk" || e[":message-type"] != "event" {
					t.Errorf("event %v", e)
				}
				got += e[""] + "|"
			}
			last := events[len(events)-1]
			var end complete
			if err := json.Unmarshal([]byte(last[""]), &end); err != nil || last[":event-type"] != "InvokeComplete" || end.Code != c.code || end.Log == "" || got != c.want {
				t.Errorf("got %q, then %v: %v", got, last, err)
			}
		})
	}
	res, _ := do(t, "POST", url+"/2021-11-15/functions/nobody/response-streaming-invocations", "1")
	if res.StatusCode != 404 || res.Header.Get("X-Amzn-Errortype") != "ResourceNotFoundException" {
		t.Errorf("unknown: %d %v", res.StatusCode, res.Header)
	}
}

const botoScript = `
import base64, json, sys
import boto3
from botocore.config import Config
c = boto3.client("lambda", endpoint_url=sys.argv[1], region_name="eu-west-1", aws_access_key_id=sys.argv[2], aws_secret_access_key=sys.argv[3], config=Config(retries={"max_attempts": 0}, proxies={}))
r = c.invoke(FunctionName="upper", Payload=json.dumps({"a": "b"}), LogType="Tail")
assert r["StatusCode"] == 200 and json.load(r["Payload"]) == {"A": "B"} and r["ExecutedVersion"] == "7" and "FunctionError" not in r, r
assert b"a line" in base64.b64decode(r["LogResult"])
r = c.invoke(FunctionName="arn:aws:lambda:eu-west-1:123456789012:function:upper:live", InvocationType="Event", Payload=b"1")
assert r["StatusCode"] == 202, r
assert c.invoke(FunctionName="upper", InvocationType="DryRun")["StatusCode"] == 204
r = c.invoke(FunctionName="broken", Payload=b"1")
assert r["FunctionError"] == "Unhandled" and json.load(r["Payload"])["errorType"] == "ValueError", r
for name, kind in (("nobody", c.exceptions.ResourceNotFoundException), ("busy", c.exceptions.TooManyRequestsException), ("huge", c.exceptions.RequestTooLargeException)):
    try:
        c.invoke(FunctionName=name, Payload=json.dumps("x" * 200))
    except kind as e:
        assert e.response["Error"]["Message"], e.response
    else:
        raise SystemExit("no error from " + name)
r = c.invoke_with_response_stream(FunctionName="upper", Payload=b'"a,b"')
events = list(r["EventStream"])
assert b"".join(e["PayloadChunk"]["Payload"] for e in events if "PayloadChunk" in e) == b'"A,B"' and "InvokeComplete" in events[-1], events
print("ok")
`

// TestBoto runs AWS's own SDK against the door, without and with a check of
// its signatures.
func TestBoto(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	if out, err := exec.Command(python, "-c", "import boto3").CombinedOutput(); err != nil {
		t.Skipf("no boto3: %s", bytes.TrimSpace(out))
	}
	for _, public := range []bool{false, true} {
		t.Run(fmt.Sprintf("public=%v", public), func(t *testing.T) {
			_, url := lambdaWorld().start(t, func(c *Config) { c.Public = public })
			out, err := exec.Command(python, "-c", botoScript, url, "AKLODE", "the/secret+key").CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "ok" {
				t.Fatalf("%v: %s", err, out)
			}
			if !public {
				return
			}
			if out, _ := exec.Command(python, "-c", botoScript, url, "AKLODE", "wrong").CombinedOutput(); !bytes.Contains(out, []byte("UnrecognizedClientException")) {
				t.Errorf("with a wrong secret: %s", out)
			}
		})
	}
}

// Secret makes the world's tokens know one access key.
func (w *world) Secret(_ context.Context, access string) (string, Grant, error) {
	if access != "AKLODE" {
		return "", Grant{}, lode.Errorf(lode.Unauthenticated, "unknown access key")
	}
	return "the/secret+key", Grant{Role: RoleCall}, nil
}

var _ Keys = (*world)(nil)

// TestSignature checks a request that was signed by hand, and what was changed
// after that.
func TestSignature(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	sign := func() (*http.Request, *signature) {
		r, _ := http.NewRequest("POST", "http://host:1/2015-03-31/functions/arn%3Aaws/invocations?b=2&a=%20x", nil)
		r.Header.Set("X-Amz-Date", now.Format(amzTime))
		s := &signature{access: "A", scope: [4]string{"20260102", "r", "lambda", "aws4_request"}, headers: []string{"host", "x-amz-date"}}
		request := sha(s.canonical(r, []byte("body")))
		text := strings.Join([]string{sigv4, now.Format(amzTime), strings.Join(s.scope[:], "/"), request}, "\n")
		key := []byte("AWS4secret")
		for _, p := range s.scope {
			key = mac(key, p)
		}
		s.sum = mac(key, text)
		return r, s
	}
	r, s := sign()
	want := "POST\n/2015-03-31/functions/arn%253Aaws/invocations\na=%20x&b=2\nhost:host:1\nx-amz-date:20260102T030405Z\n\nhost;x-amz-date\n" + sha("body")
	if got := s.canonical(r, []byte("body")); got != want {
		t.Errorf("canonical request\n%s\nwant\n%s", got, want)
	}
	for _, c := range []struct {
		name   string
		change func(*http.Request, *signature)
		body   string
		at     time.Time
		ok     bool
	}{
		{"good", func(*http.Request, *signature) {}, "body", now, true},
		{"body", func(*http.Request, *signature) {}, "bodY", now, false},
		{"query", func(r *http.Request, _ *signature) { r.URL.RawQuery = "a=1" }, "body", now, false},
		{"late", func(*http.Request, *signature) {}, "body", now.Add(6 * time.Minute), false},
		{"early", func(*http.Request, *signature) {}, "body", now.Add(-6 * time.Minute), false},
		{"region", func(_ *http.Request, s *signature) { s.scope[1] = "q" }, "body", now, false},
		{"date unsigned", func(_ *http.Request, s *signature) { s.headers = s.headers[:1] }, "body", now, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := sign()
			c.change(r, s)
			if err := s.check(r, "secret", []byte(c.body), c.at); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func FuzzLambdaName(f *testing.F) {
	for _, s := range []string{"hello", "hello:1", "hello:$LATEST", "123456789012:function:f", "arn:aws:lambda:r:1:function:f:q", "arn:aws:lambda:::function:", ":", "a:b:c", "Ü"} {
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, raw, qualifier string) {
		n, err := parseLambdaName(raw, qualifier)
		if err != nil {
			if e := asLambdaError(err, &lambdaCall{}); e.status < 400 || e.status > 404 {
				t.Fatalf("%q: %v", raw, e)
			}
			return
		}
		if _, err := lode.ParseName(string(n.name)); err != nil || !strings.Contains(raw, string(n.name)) || strings.ContainsAny(n.alias, ":/$ ") {
			t.Fatalf("%q, %q became %+v", raw, qualifier, n)
		}
	})
}

func FuzzEvent(f *testing.F) {
	f.Add(":event-type", "PayloadChunk", []byte("hello"))
	f.Fuzz(func(t *testing.T, name, value string, payload []byte) {
		if len(name) > 255 || len(value) > 65535 {
			return
		}
		b := appendEvent(nil, []eventHeader{{name, value}, {":x", "y"}}, payload)
		events, err := decodeEvents(b)
		if err != nil || len(events) != 1 || name != "" && name != ":x" && events[0][name] != value || name != "" && events[0][""] != string(payload) {
			t.Fatalf("%q came back as %v: %v", b, events, err)
		}
		b[len(b)/2] ^= 1
		if _, err := decodeEvents(b); err == nil {
			t.Fatal("a flipped bit went through")
		}
	})
}

func FuzzSignature(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=A/20260101/r/lambda/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64), "a=%2&b")
	f.Fuzz(func(t *testing.T, header, query string) {
		if s, err := parseSignature(header); err == nil && (s.access == "" || len(s.sum) != 32) {
			t.Fatalf("%q became %+v", header, s)
		}
		if strings.ContainsAny(canonicalQuery(query), " +?#\n") {
			t.Fatalf("%q became %q", query, canonicalQuery(query))
		}
	})
}

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
