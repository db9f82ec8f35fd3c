package telemetry

import (
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxText bounds the text of one line; the rest is cut.
const maxText = 64 << 10

// Line is one line of the log: what a function wrote, or, if Call is set, the
// line that each invocation leaves at its end.
//
// On disk it is a JSON object with the keys
//
//	t    time, RFC 3339 with nanoseconds, UTC
//	ns   namespace
//	fn   function
//	rev  revision, ns/name@7
//	id   invocation
//	lvl  debug, info, warn, error
//	msg  text; of a call, what went wrong
//	call only of a call: the object of Call
//
// of which the empty ones are left out.
type Line struct {
	Time       time.Time  `json:"t"`
	Namespace  string     `json:"ns,omitempty"`
	Function   string     `json:"fn,omitempty"`
	Revision   string     `json:"rev,omitempty"`
	Invocation string     `json:"id,omitempty"`
	Level      slog.Level `json:"lvl"`
	Text       string     `json:"msg,omitempty"`
	Call       *Call      `json:"call,omitempty"`
}

// Call is the part of a Line that tells how an invocation went.
type Call struct {
	Trigger string `json:"trigger"`
	Trace   string `json:"trace,omitempty"`
	Method  string `json:"method,omitempty"`
	Path    string `json:"path,omitempty"` // without the query
	Status  int    `json:"status"`         // 499: the caller went away
	Kind    string `json:"kind,omitempty"` // how it failed
	Caller  string `json:"caller,omitempty"`
	Attempt int    `json:"attempt,omitempty"` // from the second on
	Cold    bool   `json:"cold,omitempty"`
	Queued  int64  `json:"queued_us"` // microseconds
	Wall    int64  `json:"wall_us"`
	CPU     int64  `json:"cpu_us"`
	Memory  int64  `json:"mem"` // peak bytes
	In      int64  `json:"in"`  // bytes
	Out     int64  `json:"out"`
	Ops     int    `json:"ops,omitempty"`
}

// appendLine appends l as a line of NDJSON.
func appendLine(b []byte, l *Line) []byte {
	b = appendOpen(b, l.Time, string(l.Namespace), string(l.Function), l.Revision, string(l.Invocation), l.Level, l.Text)
	if l.Call != nil {
		b = appendCall(b, l.Call)
	}
	return append(b, "}\n"...)
}

func appendOpen(b []byte, t time.Time, ns, fn, rev, id string, level slog.Level, text string) []byte {
	b = append(b, `{"t":"`...)
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendField(b, `,"ns":`, ns)
	b = appendField(b, `,"fn":`, fn)
	b = appendField(b, `,"rev":`, rev)
	b = appendField(b, `,"id":`, id)
	b = append(b, `,"lvl":"`...)
	b = append(b, levelName(level)...)
	b = append(b, '"')
	if len(text) > maxText {
		text = text[:maxText]
	}
	return appendField(b, `,"msg":`, text)
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	}
	return "ERROR"
}

func appendField(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(b, key...), value)
}

func appendCall(b []byte, c *Call) []byte {
	b = append(b, `,"call":{"trigger":`...)
	b = appendString(b, string(c.Trigger))
	b = appendField(b, `,"trace":`, c.Trace)
	b = appendField(b, `,"method":`, c.Method)
	b = appendField(b, `,"path":`, c.Path)
	b = appendInt(b, `,"status":`, int64(c.Status))
	b = appendField(b, `,"kind":`, string(c.Kind))
	b = appendField(b, `,"caller":`, c.Caller)
	if c.Attempt > 1 {
		b = appendInt(b, `,"attempt":`, int64(c.Attempt))
	}
	if c.Cold {
		b = append(b, `,"cold":true`...)
	}
	b = appendInt(b, `,"queued_us":`, c.Queued)
	b = appendInt(b, `,"wall_us":`, c.Wall)
	b = appendInt(b, `,"cpu_us":`, c.CPU)
	b = appendInt(b, `,"mem":`, c.Memory)
	b = appendInt(b, `,"in":`, c.In)
	b = appendInt(b, `,"out":`, c.Out)
	if c.Ops > 0 {
		b = appendInt(b, `,"ops":`, int64(c.Ops))
	}
	return append(b, '}')
}

func appendInt(b []byte, key string, v int64) []byte {
	return strconv.AppendInt(append(b, key...), v, 10)
}

// appendString appends s as a JSON string; bytes that are not UTF-8 become
// U+FFFD.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			b = append(append(b, s[start:i]...), `\ufffd`...)
		} else if c == '"' || c == '\\' {
			b = append(append(b, s[start:i]...), '\\', c)
		} else {
			b = append(append(b, s[start:i]...), '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

// parseLine reads what appendLine wrote, without the \n.
func parseLine(b []byte) (Line, bool) {
	var l Line
	if err := json.Unmarshal(b, &l); err != nil || l.Time.IsZero() {
		return Line{}, false
	}
	return l, true
}

// line is the line that r leaves.
func (r *Record) line() Line {
	path, _, _ := strings.Cut(r.Path, "?") // a query may hold secrets
	status := r.Status
	if r.Kind == "cancelled" {
		status = 499 // nobody was there to be told another one
	}
	level := slog.LevelInfo
	if r.Kind != "" {
		level = slog.LevelError
	}
	u := &r.Usage
	return Line{Time: r.End, Namespace: r.Namespace, Function: r.Function, Revision: r.Revision, Invocation: r.ID, Level: level, Text: r.Detail,
		Call: &Call{Trigger: r.Trigger, Trace: r.Trace.ID(), Method: r.Method, Path: path, Status: status, Kind: r.Kind, Caller: r.Caller, Attempt: r.Attempt, Cold: u.Cold,
			Queued: u.Queued.Microseconds(), Wall: r.duration().Microseconds(), CPU: u.CPU.Microseconds(), Memory: u.Memory, In: u.BodyIn, Out: u.BodyOut, Ops: u.Operations}}
}
