// Package agents holds tests of agents in clusters of real processes: nodes
// that are killed, stopped for a while, drained and added while clients use
// agents, whose histories must have one order. Nothing may import it.
package agents
