package examples_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestAgents does what the pages of the examples of agents say, on one node.
func TestAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and compiles every example")
	}
	h := open(t)
	for name, run := range map[string]func(t *testing.T, h *house){
		"election": elect, "membership": membership, "chat": chat, "limiter": limiter, "order": order, "assistant": assistant,
	} {
		t.Run(name, func(t *testing.T) { run(t, h) })
	}
}

// tell calls a method of an agent with a list of arguments, in JSON.
func (h *house) tell(t *testing.T, address, method, args string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", h.url+"/agents/"+address+"/"+method, strings.NewReader(args))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.lode.args+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s%s: %s: %s", address, method, args, resp.Status, b)
	}
	return string(b)
}

// becomes waits until a method answers what is wanted.
func (h *house) becomes(t *testing.T, address, method, want string) {
	t.Helper()
	got := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got = h.tell(t, address, method, "[]"); strings.Contains(got, want) {
			return
		}
	}
	t.Fatalf("%s %s stays %s, want %s", address, method, got, want)
}

// round is what election-round answers.
type round struct {
	Leader, Living, Messages int
	MS                       float64
	Timeouts                 int `json:"timeouts_ms"`
}

func elect(t *testing.T, h *house) {
	h.deploy(t, copied(t, "election"))
	for _, c := range []struct {
		setup    string
		notice   string
		members  int
		messages int
	}{
		{`{"group":"few","members":5,"timeout_ms":300}`, `{"group":"few"}`, 5, 4},
		{`{"group":"low","members":8,"timeout_ms":1000}`, `{"group":"low","notice":0}`, 8, 28 + 21 + 6},
		{`{"group":"board","members":4,"timeout_ms":1500,"board":true}`, `{"group":"board"}`, 4, 3},
	} {
		h.call(t, "POST", "/fn/election-start", c.setup, 200)
		for range 2 { // the second time the highest has to come back first
			var r round
			if err := json.Unmarshal([]byte(h.call(t, "POST", "/fn/election-round", c.notice, 200)), &r); err != nil {
				t.Fatal(err)
			}
			if r.Leader != c.members-2 || r.Living != c.members-1 || r.Messages < c.messages || r.MS < float64(r.Timeouts) {
				t.Errorf("%s: %+v, want the leader %d and at least %d messages", c.setup, r, c.members-2, c.messages)
			}
		}
		h.call(t, "POST", "/fn/election-stop", c.notice, 204)
	}
	if got := h.call(t, "POST", "/fn/election-round", `{"group":"nobody"}`, 502); !strings.Contains(got, "is not ready for a round") {
		t.Error(got)
	}
}

func membership(t *testing.T, h *house) {
	h.deploy(t, copied(t, "membership"))
	h.tell(t, "roster/crew", "configure", "[500]")
	peers := []string{"ann", "bob", "cleo"}
	for _, p := range peers {
		h.tell(t, "peer/"+p, "join", `["crew"]`)
	}
	h.becomes(t, "roster/crew", "now", `["ann","bob","cleo"]`)
	h.tell(t, "peer/bob", "silence", "[true]")
	h.becomes(t, "roster/crew", "now", `["ann","cleo"]`)
	h.tell(t, "peer/bob", "silence", "[false]")
	h.becomes(t, "roster/crew", "now", `["ann","bob","cleo"]`)
	for _, p := range peers {
		h.tell(t, "peer/"+p, "leave", "[]")
	}
	h.becomes(t, "roster/crew", "now", `"peers":[]`)
	// whoever has installed a view has installed the same one, in the same order
	known := map[int]string{}
	for _, p := range peers {
		var views []struct {
			N     int
			Peers []string
		}
		if err := json.Unmarshal([]byte(h.tell(t, "peer/"+p, "seen", "[]")), &views); err != nil {
			t.Fatal(err)
		}
		last := 0
		for _, v := range views {
			who := strings.Join(v.Peers, " ")
			if v.N <= last || known[v.N] != "" && known[v.N] != who || !slices.Contains(v.Peers, p) {
				t.Errorf("%s installed view %d (%s) after %d; others know it as %q", p, v.N, who, last, known[v.N])
			}
			known[v.N], last = who, v.N
		}
		if len(views) < 2 {
			t.Errorf("%s has seen %d views", p, len(views))
		}
	}
}

// dial opens a WebSocket.
func (h *house) dial(t *testing.T, path string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), h.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	return c
}

// hears reads texts until one is as wanted, and returns all of them.
func hears(t *testing.T, c *websocket.Conn, want string) (all []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatalf("after %q: %v, want %s", all, err, want)
		}
		all = append(all, string(b))
		if string(b) == want {
			return all
		}
	}
}

func says(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func chat(t *testing.T, h *house) {
	h.deploy(t, copied(t, "chat", "idle: 10s", "idle: 100ms"))
	h.tell(t, "room/lobby", "say", `["cleo", "anybody?"]`)
	ann := h.dial(t, "/agents/room/lobby?name=ann")
	hears(t, ann, `{"n":1,"from":"cleo","text":"anybody?"}`)
	bob := h.dial(t, "/agents/room/lobby?name=bob")
	says(t, ann, "me")
	hears(t, bob, `{"n":2,"from":"ann","text":"me"}`)
	want(t, h.tell(t, "room/lobby", "who", "[]"), `["ann","bob"]`)
	for awake := true; awake; time.Sleep(20 * time.Millisecond) { // the room falls asleep, its sockets do not
		a, err := h.client.GetAgent(t.Context(), "room", "lobby")
		if err != nil {
			t.Fatal(err)
		}
		awake = a.Active
	}
	says(t, bob, "me too")
	hears(t, ann, `{"n":3,"from":"bob","text":"me too"}`)
	want(t, h.call(t, "GET", "/agents/room/lobby/history?arg=2", "", 200), `[{"n":2,"from":"ann","text":"me"},{"n":3,"from":"bob","text":"me too"}]`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", h.url+"/agents/room/lobby", nil)
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", "2")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), "data:") {
	}
	want(t, lines.Text(), `data: {"n":3,"from":"bob","text":"me too"}`)
	if got := h.call(t, "GET", "/chat/lobby", "", 200); !strings.Contains(got, "<title>chat</title>") {
		t.Error(got)
	}
}

func limiter(t *testing.T, h *house) {
	h.deploy(t, copied(t, "limiter", `RATE: "0.5"`, `RATE: "0.001"`))
	got := map[string]int{}
	for i := range 10 {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", h.url+"/limited", nil)
		client := []string{"ann", "bob"}[i%2]
		req.Header.Set("X-Api-Key", client)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got[fmt.Sprint(client, " ", resp.StatusCode)]++
		if resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "" {
			t.Error("a refusal does not say when to come back")
		}
	}
	if got["ann 200"] != 3 || got["ann 429"] != 2 || got["bob 200"] != 3 || got["bob 429"] != 2 {
		t.Errorf("got %v: each client has three", got)
	}
	h.call(t, "POST", "/agents/bucket/ann/take", "", 403)
}

func order(t *testing.T, h *house) {
	h.deploy(t, copied(t, "order", `"60000"`, `"3000"`))
	h.tell(t, "stock/book", "add", "[5]")
	h.tell(t, "order/o1", "place", `["book", 2, "4111", 300]`)
	h.becomes(t, "order/o1", "show", `"stage":"paid"`)
	h.tell(t, "order/o1", "ship", "[]")
	h.tell(t, "order/o2", "place", `["book", 9, "4111", 10]`)
	h.becomes(t, "order/o2", "show", "there is not enough of book")
	h.tell(t, "order/o3", "place", `["book", 1, "4111", 900]`)
	h.becomes(t, "order/o3", "show", "the card was declined")
	h.tell(t, "order/o4", "place", `["book", 1, "4111", 50]`)
	h.becomes(t, "order/o4", "show", "it was not shipped in time")
	h.becomes(t, "stock/book", "left", "3")
	h.becomes(t, "card/4111", "spent", "300")
	want(t, h.tell(t, "order/o1", "show", "[]"), `{"stage":"shipped","item":"book","count":2,"card":"4111","amount":300}`)
	if got := h.call(t, "POST", "/agents/order/o4/ship", "", 409); !strings.Contains(got, "the order is cancelled, not paid") {
		t.Error(got)
	}
}

// model answers like a language model that only counts what it was told.
func model(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Stream   bool
		Messages []struct{ Role, Content string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/v1/chat/completions" || r.Header.Get("Authorization") != "Bearer s3cret" || !in.Stream {
		http.Error(w, "not like this", http.StatusBadRequest)
		return
	}
	last := in.Messages[len(in.Messages)-1]
	if last.Content == "fail" {
		http.Error(w, "overloaded", http.StatusServiceUnavailable)
		return
	}
	for _, word := range []string{"I was told ", fmt.Sprint(len(in.Messages)), " messages, the last is ", last.Content} {
		b, _ := json.Marshal(map[string]any{"choices": []any{map[string]any{"delta": map[string]string{"content": word}}}})
		fmt.Fprintf(w, "data: %s\n\n", b)
		w.(http.Flusher).Flush()
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func assistant(t *testing.T, h *house) {
	up := httptest.NewServer(http.HandlerFunc(model))
	defer up.Close()
	if err := h.client.SetSecret(t.Context(), "MODEL_KEY", []byte("s3cret")); err != nil {
		t.Fatal(err)
	}
	h.deploy(t, copied(t, "assistant", "https://api.openai.com", up.URL, "[api.openai.com]", `["`+strings.TrimPrefix(up.URL, "http://")+`"]`))
	want(t, h.tell(t, "assistant/ann", "ask", `["hello"]`), `"I was told 2 messages, the last is hello"`)
	ws := h.dial(t, "/agents/assistant/ann")
	says(t, ws, "again")
	all := hears(t, ws, `{"done":"I was told 4 messages, the last is again"}`)
	if len(all) != 5 || all[1] != `{"delta":"4"}` {
		t.Errorf("the words came as %q", all)
	}
	if got := h.call(t, "POST", "/agents/assistant/ann/ask", `"fail"`, 502); !strings.Contains(got, "the model answers 503") {
		t.Error(got)
	}
	var said []struct{ Role, Content string }
	if err := json.Unmarshal([]byte(h.call(t, "GET", "/agents/assistant/ann/history", "", 200)), &said); err != nil || len(said) != 4 || said[2].Content != "again" || said[3].Role != "assistant" {
		t.Errorf("it remembers %v, %v", said, err)
	}
}
