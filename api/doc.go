// Package api is the management door of a node and the Go client that goes
// through it: what is deployed, what ran, what data there is, who may ask.
//
// It holds three things that must agree and are therefore one package: the
// wire types, the handler that serves /v1 from a Backend, and the Client. The
// routes stand in one table, from which the handler and the OpenAPI document
// are both made.
//
// It promises that every write needs a grant and is audited, that every error
// leaves as problem+json of a lode.Error, and that nothing is decided here:
// what is behind a noun is the Backend's. It imports the vocabulary and
// nothing else of Lode; services must not import it.
//
// Doors for invocations (/fn, routes, the Lambda API) are package gateway's;
// the Client calls them, the server here does not serve them.
package api
