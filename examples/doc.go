// Package examples holds programs that build, deploy and run on a node, each in
// a folder of its own with a page that says how. Its test does what the pages
// say, on a node in its own process. Nothing may import it.
package examples
