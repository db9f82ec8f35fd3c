// Package gateway is the front of a node: the HTTP doors through which people,
// browsers and AWS SDKs reach functions, agents and queues.
//
// It promises that what it hands to the Invoker has passed the checks of the
// door (Host, Origin, token, access, size), that an answer which Lode makes
// itself always carries Lode-Error and problem+json (or AWS's shape on the
// Lambda door) while a function's own answer never does, and that an answer
// cut short is seen as cut short by the client.
//
// It decides nothing about where or when an invocation runs. It imports no
// service: it declares the interfaces it consumes (Invoker, Agents, Directory,
// Tokens, Logs) and node passes the implementations. Only node may import it.
//
// # Ownership
//
// A lode.Request, its Head slice and its Body belong to the gateway again as
// soon as Invoke or Submit returns: they are pooled. Strings may be kept. Those
// of a lode.AgentCall are pooled only after a reply; see Agents.
//
// # Held answers
//
// The head and the first bytes of an answer are held until Invoke returns, the
// hold is full, the function's content type is text/event-stream, Flush is
// called, or a few milliseconds are over (see sweeper). A short answer
// therefore leaves in one write with its length and its whole Server-Timing,
// and a function that fails after it began a short answer is still reported
// with a proper status.
//
// # WebSockets
//
// A node holds the sockets that clients opened at it, wherever their agents are
// and move to: what a client says becomes a turn of the agent, what the agent
// says comes through Deliver. See socket.
//
// Lock order: sweeper.mu before answer.mu is never needed; neither is held
// while the other is taken. The same is true of socketSet.mu and socket.mu.
package gateway
