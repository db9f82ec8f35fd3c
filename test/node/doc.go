// Package node breaks real nodes from outside: processes of the command on
// free ports and folders of their own, one alone or three that are joined,
// which are killed, stopped, starved and fed with broken things. Nothing that
// was acknowledged may be lost and nothing half-done may be seen. LODE_LONG=1
// runs more and longer rounds; LODE_TEST_LOGS names a folder for all that the
// nodes say.
package node
