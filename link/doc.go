// Package link is how nodes speak with each other: one multiplexed connection
// between each pair, on which calls, streamed bodies, notes and heartbeats
// travel as frames. docs/link.md documents the frames to the byte.
//
// It promises that:
//   - a call that fails with ErrNotSent has not reached the peer, not by one
//     byte; one that fails with ErrRefused was read and not started; one that
//     fails with ErrLost may have run, wholly or in part;
//   - a large body never delays a small call by more than a chunk and what
//     the peer has been allowed to leave unread;
//   - a reader that does not read stops its own stream and nothing else;
//   - a peer that is silent for Config.LostAfter is lost: its calls fail, the
//     contexts of its handlers are cancelled, and the connection is made anew;
//   - what a peer can make this node hold is bounded, and a peer that breaks
//     the protocol is disconnected, logged once and counted.
//
// Who the peer is was settled before a connection comes here: link trusts the
// name it is given with it. It knows the words of package lode and no room.
//
// Locks: conn.mu guards everything of a connection, peer.mu the choice among a
// peer's connections, Link.mu the table of peers. Order: Link.mu, peer.mu,
// conn.mu. None is held during I/O or a callback.
package link
