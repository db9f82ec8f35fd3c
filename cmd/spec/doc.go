// Package spec reads lode.yaml: it checks the whole grammar, with line, column
// and a hint for each mistake, and makes of it what a deploy declares.
//
// The grammar stands in one table (table.go). It drives the validation and the
// JSON Schema that editors use, so the two cannot differ. Keys whose feature
// this version does not have are refused by name; none is ignored.
//
// The package reads files and the environment it is given and nothing else. It
// builds no code: sources are paths until Complete puts the artifacts in. It
// belongs to the command; no other room may import it.
package spec
