package main

import (
	"strconv"

	"lode/cmd/spec"
)

// sizeFlag is a flag in bytes: 512MiB.
type sizeFlag int64

func (s *sizeFlag) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *sizeFlag) Type() string   { return "size" }

func (s *sizeFlag) Set(text string) error {
	n, err := spec.ParseSize(text)
	*s = sizeFlag(n)
	return err
}
