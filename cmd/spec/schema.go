package spec

import "encoding/json"

// Schema is the JSON Schema of lode.yaml, made from the table that drives the
// validation. lode.schema.json is its content.
func Schema() []byte {
	root := objectSchema(appFields())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "lode.yaml"
	b, _ := json.MarshalIndent(root, "", " ")
	return append(b, '\n')
}
