package catalog

import "sync"

// watchers tells of changes. Each watcher has its own goroutine, so that one
// that is slow delays nobody; it sees only the newest of several changes.
type watchers struct {
	mu     sync.Mutex
	all    map[*watcher]bool
	closed bool
}

type watcher struct {
	news chan uint64 // the newest generation not yet told
	done chan struct{}
}

// Watch calls changed with the catalog's generation after each change, from
// one goroutine at a time, until stop is called. stop waits for a call under
// way, so changed must not call it.
func (c *Catalog) Watch(changed func(generation uint64)) (stop func()) {
	w := &watcher{news: make(chan uint64, 1), done: make(chan struct{})}
	ws := &c.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return func() {}
	}
	if ws.all == nil {
		ws.all = make(map[*watcher]bool)
	}
	ws.all[w] = true
	go func() {
		defer close(w.done)
		for gen := range w.news {
			changed(gen)
		}
	}()
	return func() { ws.remove(w) }
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	if ws.all[w] {
		delete(ws.all, w)
		close(w.news)
	}
	ws.mu.Unlock()
	<-w.done
}

func (ws *watchers) tell(gen uint64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		select {
		case <-w.news: // an older one that was not told yet
		default:
		}
		w.news <- gen
	}
}

func (ws *watchers) close() {
	ws.mu.Lock()
	ws.closed = true
	all := ws.all
	ws.all = nil
	for w := range all {
		close(w.news)
	}
	ws.mu.Unlock()
	for w := range all {
		<-w.done
	}
}
