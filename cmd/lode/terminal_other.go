//go:build !linux && !darwin

package main

import "os"

// fdIsTerminal guesses: a character device is one.
func fdIsTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func echoOff(*os.File) func() { return func() {} }
