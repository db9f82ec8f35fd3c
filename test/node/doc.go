// Package node breaks real nodes from outside: processes of the command on
// free ports and folders of their own, which are killed, stopped, starved and
// fed with broken things. Nothing that was acknowledged may be lost and nothing
// half-done may be seen. LODE_LONG=1 runs more and longer rounds.
package node
