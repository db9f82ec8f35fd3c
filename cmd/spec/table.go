package spec

import (
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
)

// The grammar. Order is that of INTERFACE: it is the order of hints and of the
// schema.

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	day = 24 * time.Hour
)

func appFields() []field[Declared] {
	return []field[Declared]{
		{key: "app", about: "owner of what follows; default: the folder's name", as: nameOf(func(d *Declared) *lode.Name { return &d.Name })},
		{key: "env", about: "environment of every function; ${NAME} comes from the deployer", as: envShape(func(d *Declared) *map[string]string { return &d.env })},
		{key: "secrets", about: "names of secrets that every function sees", as: secretsShape(func(d *Declared) *[]string { return &d.secrets })},
		{key: "defaults", about: "keys for each function", as: shape[Declared]{objectSchema(functionFields()), (*parser).readDefaults}},
		{key: "functions", about: "functions by name", as: shape[Declared]{namesSchema(objectSchema(functionFields())), (*parser).readFunctions}},
		{key: "agents", about: "kinds of agents by name", as: shape[Declared]{namesSchema(objectSchema(kindFields())), (*parser).readAgents}},
		{key: "queues", about: "durable queues by name", as: shape[Declared]{namesSchema(objectSchema(queueFields())), (*parser).readQueues}},
		{key: "datasets", about: "datasets by name", as: shape[Declared]{namesSchema(objectSchema(datasetFields())), (*parser).readDatasets}},
		refused[Declared]("services", "services", "start the program yourself and let functions reach it: egress: [127.0.0.1:PORT]"),
		refused[Declared]("flows", "flows", "a job does one step: lode run NAME --on DATASET --into DATASET"),
		refused[Declared]("static", "static files", "serve the files from a function with a route"),
		refused[Declared]("domains", "domains", "put a proxy with TLS before the node"),
	}
}

type fn = Function

func functionFields() []field[fn] {
	return append(append(triggerFields(), codeFields()...), limitFields()...)
}

func triggerFields() []field[fn] {
	routes := func(f *fn) *[]string { return &f.Routes }
	patterns := replaced(listOf(true, textSchema(""), "a pattern", checked(checkPattern), routes), routes)
	return []field[fn]{
		{key: "route", about: "public door: [METHOD ][HOST]/path, as in Go's ServeMux", as: patterns},
		{key: "routes", about: "as route, several", as: patterns},
		{key: "access", about: "who may call it", as: enumOf([]string{"token", "public", "internal"}, nil, func(f *fn) *lode.Access { return &f.Access })},
		{key: "cors", about: "what browsers of other origins are told", as: either(mapOf(corsFields(), corsAt), shape[fn]{object{"type": "boolean"}, readCORS})},
		{key: "schedule", about: "cron, UTC; or @every 10s; or {cron, zone}; or a list of them", as: scheduleShape()},
		{key: "queue", about: "the queue that it consumes", as: nameOf(func(f *fn) *lode.Name { return &f.consume.Queue })},
		{key: "batch", about: "messages that it takes at once", as: mapOf([]field[fn]{
			{key: "size", as: intOf(1, 1000, func(f *fn) *int { return &f.consume.Size })},
			{key: "wait", as: spanOf(0, 5*time.Minute, func(f *fn) *time.Duration { return &f.consume.Wait })},
		}, func(f *fn) *fn { return f })},
		refused[fn]("events", "events", "a schedule or a queue starts a function"),
		{key: "retry", about: "how asynchronous work is tried again", as: mapOf([]field[fn]{
			{key: "attempts", as: intOf(1, 100, func(f *fn) *int { return &f.Retry.Attempts })},
			{key: "first", as: spanOf(0, day, func(f *fn) *time.Duration { return &f.Retry.First })},
			{key: "max", as: spanOf(0, 7*day, func(f *fn) *time.Duration { return &f.Retry.Max })},
			{key: "dead", as: nameOf(func(f *fn) *lode.Name { return &f.Retry.Dead })},
		}, func(f *fn) *fn { return f })},
		{key: "reduce", about: "sum, count, min, max, merge, concat, or a function", as: textOf("a reducer", checkReduce, func(f *fn) *string { return &f.Reduce })},
		{key: "ok_exit", about: "exit codes of a command that are no failure", as: replaced(listOf(true, object{"type": "integer", "minimum": 0, "maximum": 255}, "an exit code", parseExit, okExitAt), okExitAt)},
	}
}

func corsAt(f *fn) *lode.CORS {
	if f.CORS == nil {
		f.CORS = &lode.CORS{}
	}
	return f.CORS
}

func okExitAt(f *fn) *[]int { return &f.OKExit }

func parseExit(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 255 {
		return 0, wrong("", "want an exit code from 0 to 255, not %q", clip(s))
	}
	return n, nil
}

// Reducers are the built-in reducers.
func Reducers() []string { return []string{"sum", "count", "min", "max", "merge", "concat"} }

func checkReduce(s string) error {
	for _, r := range Reducers() {
		if r == s {
			return nil
		}
	}
	if near := lode.Suggest(s, Reducers()); near != "" {
		return wrong("did you mean \""+near+"\"?", "there is no reducer %q", clip(s))
	}
	_, err := lode.ParseName(s)
	return err
}

func corsFields() []field[lode.CORS] {
	return []field[lode.CORS]{
		{key: "origins", as: listOf(true, textSchema(""), "an origin", checked(checkOrigin), func(c *lode.CORS) *[]string { return &c.Origins })},
		{key: "headers", as: listOf(true, textSchema(""), "a header", checked(func(s string) error {
			if !headerName.MatchString(s) {
				return wrong("", "%q is not the name of a header", clip(s))
			}
			return nil
		}), func(c *lode.CORS) *[]string { return &c.Headers })},
		{key: "max_age", as: spanOf(0, day, func(c *lode.CORS) *time.Duration { return &c.MaxAge })},
	}
}

// readCORS reads cors: true and cors: false.
func readCORS(p *parser, n *yaml.Node, f *fn) {
	s, v, ok := p.word(n, "true, or {origins, headers, max_age}")
	if !ok {
		return
	}
	on, err := parseBool(s)
	if err != nil {
		p.failAt(v, err)
		return
	}
	if f.CORS = nil; on {
		f.CORS = &lode.CORS{Origins: []string{"*"}}
	}
}

func codeFields() []field[fn] {
	build := func(f *fn) *[]string { return &f.Build }
	run := func(f *fn) *[]string { return &f.run }
	needs := func(f *fn) *[]lode.Name { return &f.Needs }
	argv := func(at func(*fn) *[]string) shape[fn] {
		return replaced(listOf(false, textSchema(""), "a word", func(s string) (string, error) { return s, nil }, at), at)
	}
	return []field[fn]{
		{key: "source", about: "folder, file or .wasm; default ./NAME, else the app's one source", as: textOf("a path", checkSource, func(f *fn) *string { return &f.Source })},
		refused[fn]("handler", "Lambda handlers in archives", "build a function with the SDK, or use a WASI command; the AWS SDKs can invoke either"),
		{key: "run", about: "argv of a command: a .wasm, or the built source with its arguments", as: argv(run)},
		{key: "build", about: "argv that builds the source", as: argv(build)},
		{key: "contract", about: "how the code is spoken to", as: enumOf([]string{"auto", "handler", "command"}, map[string]string{
			"lambda": "handler and command work", "http": "write a handler: the SDKs take an http.Handler or fetch", "tcp": "handler and command work", "cgi": "command gives the CGI variables",
		}, func(f *fn) *string { return &f.contract })},
		{key: "engine", about: "what runs it", as: enumOf([]string{"auto", "wasm"}, map[string]string{"process": "build for wasm: GOOS=wasip1, wasm32-wasi, or JavaScript"}, func(f *fn) *string { return &f.engine })},
		{key: "isolation", about: "how it is kept apart", as: enumOf([]string{"auto"}, map[string]string{"sandbox": "every function runs in a wasm sandbox already", "gvisor": "every function runs in a wasm sandbox already"}, func(f *fn) *string { return &f.isolation })},
		{key: "reuse", about: "keep a sandbox's memory between calls", as: boolOf(func(f *fn) *bool { return &f.Reuse })},
		{key: "env", about: "added to the app's", as: envShape(func(f *fn) *map[string]string { return &f.Env })},
		{key: "secrets", about: "added to the app's", as: secretsShape(func(f *fn) *[]string { return &f.Secrets })},
		{key: "egress", about: "public, none, or a list of host[:port]", as: shape[fn]{object{"anyOf": []object{{"enum": []string{"public", "none"}}, {"type": "array", "items": textSchema("")}}}, readEgress}},
		{key: "needs", about: "names that it calls", as: replaced(listOf(true, textSchema(namePattern), "a name", lode.ParseName, needs), needs)},
	}
}

func limitFields() []field[fn] {
	return []field[fn]{
		{key: "memory", about: "of one sandbox", as: sizeOf(mib, 4*gib, func(f *fn) *int64 { return &f.Limits.Memory })},
		{key: "cpu", about: "1: a sandbox computes on one core", as: onlyOne("leave it out: a sandbox computes on one core; several invocations use several", func(f *fn) { f.Limits.CPU = 1 })},
		refused[fn]("cpu_features", "choice by CPU features", "leave it out: WebAssembly's SIMD works on every node"),
		{key: "gpu", about: "0: this version gives no devices", as: shape[fn]{object{"enum": []any{0, "none"}}, readGPU}},
		{key: "timeout", about: "{start, total, idle}, or total alone", as: either(mapOf([]field[fn]{
			{key: "start", as: spanOf(time.Millisecond, time.Hour, func(f *fn) *time.Duration { return &f.Limits.Start })},
			{key: "total", as: spanOf(time.Millisecond, day, totalAt)},
			{key: "idle", as: spanOf(time.Millisecond, day, func(f *fn) *time.Duration { return &f.Limits.Idle })},
		}, func(f *fn) *fn { return f }), spanOf(time.Millisecond, day, totalAt))},
		{key: "scale", about: "sandboxes", as: mapOf([]field[fn]{
			{key: "min", as: intOf(0, 10_000, func(f *fn) *int { return &f.Limits.ScaleMin })},
			{key: "max", as: intOf(0, 100_000, func(f *fn) *int { return &f.Limits.ScaleMax })},
			{key: "each", as: onlyOne("leave it out: every invocation has a sandbox of its own", func(f *fn) { f.Limits.Each = 1 })},
		}, func(f *fn) *fn { return f })},
		{key: "queue_max", about: "invocations that may wait", as: intOf(0, 1_000_000, func(f *fn) *int { return &f.Limits.QueueMax })},
		{key: "body", about: "of a buffered request; streams have no limit", as: sizeOf(0, gib, func(f *fn) *int64 { return &f.Limits.Body })},
		{key: "tmp", about: "under /tmp", as: sizeOf(0, 16*gib, func(f *fn) *int64 { return &f.Limits.Tmp })},
		refused[fn]("near", "placement near a name", "leave it out: jobs go to their data by themselves"),
		refused[fn]("where", "placement by labels", "leave it out: there is one node"),
		refused[fn]("slo", "service levels", "timeout, scale and queue_max bound a function"),
	}
}

func totalAt(f *fn) *time.Duration { return &f.Limits.Total }

func queueFields() []field[lode.Queue] {
	return []field[lode.Queue]{
		{key: "keep", about: "how long messages wait at most", as: spanOf(time.Second, 365*day, func(q *lode.Queue) *time.Duration { return &q.Keep })},
		{key: "deliver", about: "attempts before the dead letter", as: intOf(1, 1000, func(q *lode.Queue) *int { return &q.Deliver })},
		{key: "visible", about: "how long a consumer may take", as: spanOf(time.Second, 12*time.Hour, func(q *lode.Queue) *time.Duration { return &q.Visible })},
		{key: "max", about: "messages", as: countOf(1, 1e9, func(q *lode.Queue) *int64 { return &q.Max })},
	}
}

func datasetFields() []field[lode.Dataset] {
	from := func(d *lode.Dataset) *[]string { return &d.From }
	return []field[lode.Dataset]{
		{key: "from", about: "files: a path, a glob, or a list of them", as: listOf(true, textSchema(""), "a path", checked(checkFrom), from)},
		{key: "records", about: "how bytes fall into records", as: scalar(object{"type": "string", "pattern": "^(lines|csv|ndjson|files|fixed:[1-9][0-9]*)$"}, "a record form", checkRecords, func(d *lode.Dataset) *lode.Records { return &d.Records })},
		{key: "shard", about: "target bytes of a shard", as: sizeOf(64*kib, gib, func(d *lode.Dataset) *int64 { return &d.Shard })},
		{key: "copies", about: "replicas", as: intOf(1, 16, func(d *lode.Dataset) *int { return &d.Copies })},
		{key: "keep", about: "versions", as: intOf(1, 1000, func(d *lode.Dataset) *int { return &d.Keep })},
	}
}
