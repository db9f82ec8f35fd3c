// Package cut breaks what is between and under the nodes of a real cluster:
// processes of the command in network namespaces of their own, with addresses
// that other machines could use, on a switch that the test owns. Links are cut
// and slowed, disks are filled, clocks are set wrong, strangers come to the
// ports. What was acknowledged must be kept, what cannot be done must be said,
// and all must heal without a human. It needs root and the tools ip and tc, and
// is skipped without them. LODE_LONG=1 runs more and longer rounds.
package cut
