// Grep is an ordinary program that knows nothing of Lode: it reads standard
// input, writes standard output, and exits with 1 when nothing matched.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"regexp"
)

func main() {
	count := flag.Bool("c", false, "print how many lines match")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: grep [-c] PATTERN < FILE")
		os.Exit(2)
	}
	pattern, err := regexp.Compile(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "grep:", err)
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	n := 0
	for in.Scan() {
		if !pattern.Match(in.Bytes()) {
			continue
		}
		if n++; !*count {
			fmt.Fprintf(out, "%s\n", in.Bytes())
		}
	}
	if *count {
		fmt.Fprintln(out, n)
	}
	out.Flush()
	if n == 0 {
		os.Exit(1)
	}
}
