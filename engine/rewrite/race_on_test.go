//go:build race

package rewrite

// raced: the tests run under the race detector.
const raced = true
