package api

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"time"

	"lode"
)

func openAPI(c *call) error {
	c.begin("application/json", http.StatusOK)
	_, err := c.w.Write(OpenAPI())
	return c.gone(err)
}

type object = map[string]any

// OpenAPI is the OpenAPI 3.1 document of /v1, made from the table of routes.
func OpenAPI() []byte {
	g := &schemas{defs: object{}}
	paths := object{}
	for _, rt := range routes() {
		ops, ok := paths[rt.path].(object)
		if !ok {
			ops = object{}
			paths[rt.path] = ops
		}
		ops[strings.ToLower(rt.method)] = g.operation(rt)
	}
	g.defs["Problem"] = problemSchema()
	b, _ := json.MarshalIndent(object{
		"openapi":    "3.1.0",
		"info":       object{"title": "Lode management API", "version": "1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		"paths":      paths,
		"security":   []object{{"token": []string{}}},
		"components": object{"schemas": g.defs, "securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}}},
	}, "", " ")
	return append(b, '\n')
}

func (g *schemas) operation(rt route) object {
	var params []object
	for part := range strings.SplitSeq(rt.path, "/") {
		if strings.HasPrefix(part, "{") {
			params = append(params, object{"name": strings.Trim(part, "{}"), "in": "path", "required": true, "schema": object{"type": "string"}})
		}
	}
	for _, p := range rt.query {
		params = append(params, object{"name": p.name, "in": "query", "description": p.about, "schema": object{"type": p.kind}})
	}
	params = append(params, object{"name": "Lode-Namespace", "in": "header", "schema": object{"type": "string"}})
	ok := object{"description": "done"}
	switch {
	case rt.reply != nil:
		ok["content"] = object{"application/json": object{"schema": g.of(reflect.TypeOf(rt.reply))}}
	case rt.rawType != "":
		ok["content"] = object{rt.rawType: object{}}
	}
	status := "200"
	if rt.reply == nil && rt.rawType == "" && rt.method != "HEAD" {
		status = "204"
	}
	op := object{
		"operationId": rt.id, "summary": rt.summary, "parameters": params, "tags": []string{strings.Split(rt.path, "/")[2]}, "x-lode-role": rt.role,
		"responses": object{status: ok, "default": object{"description": "a problem", "content": object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}}},
	}
	switch {
	case rt.body != nil:
		op["requestBody"] = object{"content": object{"application/json": object{"schema": g.of(reflect.TypeOf(rt.body))}}}
	case rt.bodyRaw != "":
		op["requestBody"] = object{"content": object{rt.bodyRaw: object{}}}
	}
	return op
}

// schemas collects named schemas.
type schemas struct{ defs object }

// of is the schema of what encoding/json writes for t.
func (g *schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[time.Duration]():
		return object{"type": "integer", "description": "nanoseconds"}
	case reflect.TypeFor[lode.Digest]():
		return object{"type": "string", "pattern": "^([0-9a-f]{64})?$"}
	case reflect.TypeFor[json.RawMessage]():
		return object{}
	case reflect.TypeFor[lode.Error]():
		return object{"$ref": "#/components/schemas/Problem"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.of(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": g.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": g.of(t.Elem())}
	case reflect.Struct:
		return g.structure(t)
	}
	return object{}
}

func (g *schemas) structure(t reflect.Type) object {
	name := schemaName(t)
	ref := object{"$ref": "#/components/schemas/" + name}
	if _, done := g.defs[name]; done {
		return ref
	}
	props := object{}
	g.defs[name] = object{"type": "object", "properties": props}
	g.fields(t, props)
	return ref
}

func (g *schemas) fields(t reflect.Type, props object) {
	for f := range t.Fields() {
		if f.Anonymous {
			g.fields(f.Type, props)
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && tag != "-" && tag != "" {
			props[tag] = g.of(f.Type)
		}
	}
}

// schemaName tells the wire's App from the vocabulary's, and List[api.App]
// from others.
func schemaName(t reflect.Type) string {
	name := t.Name()
	if base, arg, ok := strings.Cut(name, "["); ok {
		arg = strings.TrimSuffix(arg, "]")
		arg = arg[strings.LastIndexByte(arg, '/')+1:]
		return strings.ReplaceAll(arg, ".", "") + base
	}
	if t.PkgPath() == "lode" {
		return "lode" + name
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

func problemSchema() object {
	var kinds []string
	for _, k := range lode.Kinds() {
		kinds = append(kinds, string(k))
	}
	text := object{"type": "string"}
	return object{"type": "object", "required": []string{"type", "title", "status", "kind", "retry"}, "properties": object{
		"type": text, "title": text, "detail": text, "hint": text, "invocation": text, "trace": text,
		"status": object{"type": "integer"}, "kind": object{"type": "string", "enum": kinds},
		"retry": object{"type": "boolean"}, "retry_after": object{"type": "number", "description": "seconds"},
		"guest": object{"type": "object", "properties": object{"type": text, "message": text, "stack": object{"type": "array", "items": text}}},
	}}
}
