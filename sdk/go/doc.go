// Package lode is what a function written in Go imports to run on Lode:
//
//	func censor(ctx context.Context, doc string) (string, error) { ... }
//	func main() { lode.Handle(censor) }
//
// It promises that the same file runs in both worlds. Built for
// GOOS=wasip1 as a reactor (lode deploy does that) the handlers are exported
// by the guest ABI of lode/sdk/abi. Run natively (go run ., a debugger) they
// are served over HTTP on $PORT, 8080 by default; there calls go to $LODE_URL,
// and configuration and secrets come from the environment. Natively main is
// run a second time to collect the registrations, because the first one must
// not return: what stands before the first Handle happens twice.
//
// Values are JSON unless they are bytes: a []byte goes as it is. Every
// operation overlaps with those of other goroutines.
//
// A guest is one program with one set of handlers, so registrations are kept
// in package variables; they are written by main before the first invocation
// and only read from then on.
//
// With the build tag lode_nohttp, on wasip1 only, everything that needs
// net/http is left out (Fetch, http.Handler as a handler): a module without it
// is smaller by more than half. The builder sets the tag where the source
// cannot need it. Only user code imports this package; no room of Lode does.
package lode
