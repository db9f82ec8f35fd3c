//go:build linux

package node

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode"
)

// awsClient is a program against AWS's SDK for Python. Its single line of
// output is one JSON object.
const awsClient = `
import json, sys, base64, boto3
from botocore.config import Config
from botocore.exceptions import ClientError
c = boto3.client("lambda", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any",
                 config=Config(retries={"max_attempts": 1}, parameter_validation=False))
out = {}
def invoke(name, **kw):
    try:
        r = c.invoke(**kw)
        out[name] = {"status": r["StatusCode"], "payload": r["Payload"].read().decode(), "error": r.get("FunctionError"), "version": r.get("ExecutedVersion"),
                     "log": base64.b64decode(r.get("LogResult", "")).decode()}
    except ClientError as e:
        out[name] = {"code": e.response["Error"]["Code"], "status": e.response["ResponseMetadata"]["HTTPStatusCode"], "message": e.response["Error"]["Message"]}
invoke("request", FunctionName="greet", Payload=json.dumps({"name": "you"}))
invoke("default", FunctionName="greet")
invoke("log", FunctionName="greet", LogType="Tail", Payload=b'{"name":"log"}')
invoke("arn", FunctionName="arn:aws:lambda:us-east-1:123456789012:function:greet", Payload=b'{"name":"arn"}')
invoke("version", FunctionName="greet", Qualifier="1", Payload=b'{"name":"one"}')
invoke("latest", FunctionName="greet", Qualifier="$LATEST", Payload=b'{"name":"latest"}')
invoke("event", FunctionName="greet", InvocationType="Event", Payload=b'{"name":"later"}')
invoke("dry", FunctionName="greet", InvocationType="DryRun")
invoke("throws", FunctionName="greet", Payload=b'{"throw":"up"}')
invoke("unknown", FunctionName="gret", Payload=b'{}')
invoke("not json", FunctionName="greet", Payload=b'{"name":')
invoke("large", FunctionName="greet", Payload=json.dumps({"name": "x" * (7 << 20)}))
invoke("bad type", FunctionName="greet", InvocationType="Sometimes")
s = c.invoke_with_response_stream(FunctionName="greet", Payload=b'{"name":"stream"}')
out["stream"] = {"status": s["StatusCode"], "payload": "".join(e["PayloadChunk"]["Payload"].decode() for e in s["EventStream"] if "PayloadChunk" in e)}
print(json.dumps(out))
`

// boto finds a Python with AWS's SDK, or makes one in the user's cache.
func boto(t *testing.T) string {
	t.Helper()
	has := func(python string) bool { return exec.Command(python, "-c", "import boto3").Run() == nil }
	if has("python3") {
		return "python3"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	venv := filepath.Join(cache, "lode-test", "boto3")
	python := filepath.Join(venv, "bin", "python")
	if has(python) {
		return python
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "python3", "-m", "venv", venv).CombinedOutput(); err != nil {
		t.Skipf("no Python with boto3, and no venv: %v %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, python, "-m", "pip", "install", "-q", "boto3").CombinedOutput(); err != nil {
		t.Skipf("boto3 cannot be installed: %v %s", err, out)
	}
	return python
}

// TestBoto calls a function with AWS's own SDK: in each invocation type, and
// with each mistake.
func TestBoto(t *testing.T) {
	python := boto(t)
	home := t.TempDir()
	p := start(t, filepath.Join(home, "data"))
	src := filepath.Join(home, "greet")
	write(t, filepath.Join(src, "index.js"), `export default (event) => {
  if (event?.throw) throw new RangeError("thrown " + event.throw);
  console.log("greeting", event?.name);
  return { hello: event?.name ?? "nobody" };
};
`)
	p.must("", "deploy", src)
	script := filepath.Join(home, "client.py")
	write(t, script, awsClient)
	cmd := exec.Command(python, script, p.url)
	cmd.Env = clean("HOME="+home, "AWS_EC2_METADATA_DISABLED=true")
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	type answer struct {
		Status                                      int
		Payload, Error, Version, Log, Code, Message string
	}
	var got map[string]answer
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for name, want := range map[string]answer{
		"request":  {Status: 200, Payload: `{"hello":"you"}`, Version: "1"},
		"default":  {Status: 200, Payload: `{"hello":"nobody"}`},
		"log":      {Status: 200, Payload: `{"hello":"log"}`, Log: "greeting log"},
		"arn":      {Status: 200, Payload: `{"hello":"arn"}`},
		"version":  {Status: 200, Payload: `{"hello":"one"}`, Version: "1"},
		"latest":   {Status: 200, Payload: `{"hello":"latest"}`},
		"event":    {Status: 202},
		"dry":      {Status: 204},
		"throws":   {Status: 200, Error: "Unhandled", Payload: `"errorType":"RangeError"`},
		"unknown":  {Status: 404, Code: "ResourceNotFoundException", Message: "gret"},
		"not json": {Status: 400, Code: "InvalidRequestContentException"},
		"large":    {Status: 413, Code: "RequestTooLargeException"},
		"bad type": {Status: 400, Code: "InvalidParameterValueException"},
		"stream":   {Status: 200, Payload: `{"hello":"stream"}`},
	} {
		a := got[name]
		if a.Status != want.Status || !strings.Contains(a.Payload, want.Payload) || a.Error != want.Error || !strings.Contains(a.Log, want.Log) || a.Code != want.Code ||
			want.Version != "" && a.Version != want.Version || !strings.Contains(a.Message, want.Message) {
			t.Errorf("%s: got %+v, want %+v", name, a, want)
		}
	}
	waitFor(t, "the event to be done", func() bool {
		out, _, _ := p.lode("", "calls", "ls", "-o", "json")
		return strings.Contains(out, string(lode.StateDone))
	})
}
