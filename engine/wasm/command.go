package wasm

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"lode"
	"lode/sdk/abi"
)

// asCommand makes the call one of a command: the body is standard input, the
// answer standard output, the head becomes CGI variables.
func (c *call) asCommand() { c.wasi.command = true }

// strings are the arguments and the environment, made when first asked for.
// Before the snapshot both are empty, and the environment of handlers always
// is: they ask for config.
func (c *call) strings() *wasi {
	w := &c.wasi
	if w.known || c.inv == nil {
		return w
	}
	w.known = true
	conf := &c.sb.p.c
	w.args = append([]string{programName(conf.Revision)}, conf.Args...)
	env := maps.Clone(conf.Env)
	if env == nil {
		env = map[string]string{}
	}
	if w.command {
		cgi(c.inv.Head, len(c.inv.Body), c.inv.Stream != nil, env)
		if c.inv.Windows != nil {
			env["SHARD"] = "/shard"
		}
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		w.env = append(w.env, k+"="+env[k])
	}
	return w
}

// programName is argv[0]: the function's name in "namespace/name@number".
func programName(revision string) string {
	_, name, ok := strings.Cut(revision, "/")
	if !ok {
		name = revision
	}
	name, _, _ = strings.Cut(name, "@")
	return name
}

// cgi adds the variables of RFC 3875, and one LODE_ variable for each pair of
// ours. A header field Proxy is left out: programs take HTTP_PROXY for a
// setting.
func cgi(head []byte, body int, stream bool, env map[string]string) {
	env["GATEWAY_INTERFACE"], env["SERVER_PROTOCOL"], env["SERVER_SOFTWARE"] = "CGI/1.1", "HTTP/1.1", "lode"
	env["REQUEST_METHOD"], env["SCRIPT_NAME"] = "POST", ""
	if !stream {
		env["CONTENT_LENGTH"] = strconv.Itoa(body)
	}
	abi.Decode(head, func(key, value []byte) {
		k, v := string(key), string(value)
		switch {
		case k == ":method":
			env["REQUEST_METHOD"] = v
		case k == ":path":
			env["REQUEST_URI"] = v
			env["PATH_INFO"], env["QUERY_STRING"], _ = strings.Cut(v, "?")
		case k == "content-type":
			env["CONTENT_TYPE"] = v
		case k == "content-length":
			env["CONTENT_LENGTH"] = v
		case k == "host":
			env["SERVER_NAME"], env["SERVER_PORT"], _ = strings.Cut(v, ":")
			env["HTTP_HOST"] = v
		case k == "proxy" || k == "authorization":
		case strings.HasPrefix(k, ":"):
			env["LODE_"+variable(k[1:])] = v
		default:
			env["HTTP_"+variable(k)] = v
		}
	})
}

// variable makes a field's name a variable's.
func variable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
}

// exited is the end of a command by proc_exit, nil when it is a good one.
func (c *call) exited(code uint32) *lode.Error {
	if c.inv != nil {
		c.inv.ExitCode = int(code)
	}
	ok := c.sb.p.c.OKExit
	if c.wasi.command && (len(ok) == 0 && code == 0 || slices.Contains(ok, int(code))) {
		return nil
	}
	e := lode.Errorf(lode.Crashed, "the function exited with code %d", code)
	e.Guest = c.guestError("exit", "exit code "+strconv.Itoa(int(code)))
	return e
}
