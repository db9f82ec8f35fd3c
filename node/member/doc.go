// Package member says who belongs to a cluster and proves it.
//
// It holds a node's Identity (key, certificate, the cluster's CA), the
// Authority that signs certificates, the tokens and the protocol by which a
// node joins, the table of nodes as every node mirrors it (Members), and the
// peer port: the Listener that tells link, bus and joiners apart, and the
// Dialer that reaches another node by its name. Only node and its siblings
// import it.
//
// What it promises: nothing passes between two nodes except over TLS 1.3 with
// a certificate of the cluster on both sides and the name checked; a joiner
// sends its token only to a node whose CA has the hash in the token; a token
// is not used more often than it says; two nodes never get one name; a node
// that was removed is refused as soon as the mirror shows it. Certificates are
// read anew at each handshake, and renewed at two thirds of their life.
//
// What it cannot promise: every node can sign, for every node holds the key
// that the CA's key is sealed with. Removing a node shuts out its certificate,
// not a thief who has copied its data folder: that takes a new cluster.
//
// # Certificates
//
// The CA is self-signed, Ed25519, for 10 years, with the URI lode://CLUSTER; CLUSTER is
// 32 random hexadecimal digits. A node's certificate is for 90 days, from 5
// minutes before it was made, for client and server use, with the URI
// lode://CLUSTER/NODE and the DNS names NODE and peer.CLUSTER.lode. Its serial has 16
// bytes: the first 8 of the SHA-256 of the node's public key (the node's mark,
// the same over renewals, so that a node is told apart from a former one of
// the same name), then 8 random ones.
//
// # Tables
//
//	cluster  ca             the CA: caRecord
//	cluster  join/ID        a join token: keptToken; ID is join-<12 hexadecimal digits>
//	nodes    NAME           a node: Record
//	nodes    removed/MARK   a node that was removed: removal
//
// # The peer port
//
// TLS 1.3 with one of three protocols (ALPN). lode-link/1 and lode-bus/1 ask
// for the client's certificate; lode-join/1 does not. On the first two the
// server speaks first, before the connection is anybody's: the byte 0x00 is
// "welcome"; 0x01 is "refused", followed by 4 bytes of length (big-endian, at
// most 16384), that many bytes of problem+json, and the end.
//
// # The join protocol, lode-join/1
//
// The joiner checks that the server's certificate was signed by a CA in the
// server's chain whose DER has the SHA-256 in the token. Then one message goes
// each way. A message is one byte of type, 4 bytes of length (big-endian), and
// that many bytes of JSON:
//
//	'J'  joiner: Request, at most 65536 bytes, within 10 s of the handshake
//	'A'  server: Answer, at most 8388608 bytes
//	'E'  server: problem+json, at most 16384 bytes
//
// The whole takes at most 30 s. Unknown JSON fields are passed over.
//
// Lock order: none of this package's locks is held while another one is taken,
// nor over a call to the bus or to another node.
package member
