package lode

import "time"

// Records is how a dataset's bytes fall into records: lines, csv, ndjson,
// files, or fixed:N (N bytes each).
type Records string

// The record forms that are words.
const (
	RecordsLines  Records = "lines"
	RecordsCSV    Records = "csv" // RFC 4180: quoted newlines stay inside a record
	RecordsNDJSON Records = "ndjson"
	RecordsFiles  Records = "files" // one record a file; see FileIndex
)

// Manifest is one immutable version of a dataset. Manifests are blobs; the
// dataset's register names the newest and changes only by compare-and-swap.
type Manifest struct {
	Namespace Namespace `json:"namespace"`
	Name      Name      `json:"name"`
	Version   int       `json:"version"` // 1, 2, 3 ...
	Parent    Digest    `json:"parent"`  // the manifest before; zero for the first
	Created   time.Time `json:"created"`
	Records   Records   `json:"records"`
	Header    []byte    `json:"header,omitempty"` // csv: the header line, kept out of the shards
	Shards    []Shard   `json:"shards"`
	Bytes     int64     `json:"bytes"` // sum over shards
	Count     int64     `json:"count"` // records, sum over shards
}

// Shard is a run of whole records, one blob.
type Shard struct {
	Digest Digest `json:"digest"`
	Bytes  int64  `json:"bytes"`
	Count  int64  `json:"count"` // records
	// Index is a blob with the records' borders and names; only for files.
	Index Digest `json:"index,omitzero"`
}

// FileIndex is the content of a shard's Index blob: the files that the shard
// holds one after the other, in order.
type FileIndex struct {
	Names []string `json:"names"`
	Ends  []int64  `json:"ends"` // offset behind each file
}
