//go:build !linux

package main

import "lode/api"

// systemChecks: other systems need nothing special, and offer nothing.
func systemChecks() []api.Check { return nil }

func freeBytes(string) (int64, bool) { return 0, false }
