//go:build linux || darwin

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

func fdIsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	return err == nil
}

// echoOff hides what is typed and returns what shows it again.
func echoOff(f *os.File) func() {
	old, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	if err != nil {
		return func() {}
	}
	hidden := *old
	hidden.Lflag &^= unix.ECHO
	unix.IoctlSetTermios(int(f.Fd()), setTermios, &hidden)
	return func() { unix.IoctlSetTermios(int(f.Fd()), setTermios, old) }
}
