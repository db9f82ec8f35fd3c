package sdk

import _ "embed"

//go:embed js/lode.d.ts
var types string

// Types are the TypeScript declarations of what scripts import: a file
// lode.d.ts for editors, which building does not need.
func Types() string { return types }
