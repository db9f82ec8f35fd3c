/* The ZeroMQ side of bench election: Garcia-Molina's bully algorithm among
 * processes, by the rules of examples/election.
 *   bully MEMBERS TIMEOUT       starts so many processes, and prints "ready"; then for each
 *                               line NOTICE on standard input it kills the highest with SIGKILL,
 *                               tells the process NOTICE so, and when all that live name the same
 *                               leader prints LEADER MESSAGES MILLIS and the milliseconds of
 *                               that which were time-outs. TIMEOUT is in milliseconds.
 *   bully member ...            is one of them
 * Each process has a PULL socket and a PUSH socket to each other one, over TCP. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { MOST = 256, NOBODY = -1, GIVE_UP = 60000 /* ms without a message */ };

/* The first three are the algorithm's, and counted. hello: I am there, at
 * this address. seat: somebody else is. notice: the leader is down, or you have
 * come back. report: I know a leader. */
enum word { ELECTION, ANSWER, COORDINATOR, HELLO, SEAT, NOTICE, REPORT };
enum stage { IDLE, ASKED, PROMISED };

struct message {
	int32_t word, from, round, leader, waited;
	int32_t sent[3];
	char at[64];
};

static double now(void) { /* milliseconds */
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void die(const char *what) {
	fprintf(stderr, "bully: %s: %s\n", what, zmq_strerror(zmq_errno()));
	exit(1);
}

static void *ctx;

static void *pull(char *at, size_t cap) {
	void *s = zmq_socket(ctx, ZMQ_PULL);
	if (zmq_bind(s, "tcp://127.0.0.1:*") || zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, at, &cap)) die("bind");
	return s;
}

static void *push(const char *at) {
	void *s = zmq_socket(ctx, ZMQ_PUSH);
	int zero = 0;
	zmq_setsockopt(s, ZMQ_LINGER, &zero, sizeof zero);
	if (zmq_connect(s, at)) die(at);
	return s;
}

/* A message to a process that is dead is lost, as on a network. */
static void post(void *s, const struct message *m) {
	if (s) zmq_send(s, m, sizeof *m, ZMQ_DONTWAIT);
}

/* One member. */

static int rank, members, timeout_ms;
static int round_, leader = NOBODY, again, waited, sent[3];
static enum stage stage;
static void *to[MOST], *parent;
static int timer;
static struct message told;

static void wait_ms(int ms) { /* 0: for nothing */
	struct itimerspec t = {.it_value = {ms / 1000, ms % 1000 * 1000000L}};
	timerfd_settime(timer, 0, &t, NULL);
}

static void say(int whom, enum word w) {
	struct message m = {.word = w, .from = rank, .round = round_};
	sent[w]++;
	post(to[whom], &m);
}

static void enter(int r) {
	if (r <= round_) return;
	round_ = r, leader = NOBODY, stage = IDLE, again = waited = 0;
	memset(sent, 0, sizeof sent);
}

static int patience(void) { return 5 * timeout_ms << (again < 10 ? again : 10); }

static void win(void) {
	leader = rank, stage = IDLE;
	wait_ms(0);
	for (int i = 0; i < rank; i++) say(i, COORDINATOR);
}

static void ask(void) {
	leader = NOBODY;
	if (rank == members - 1) {
		win();
		return;
	}
	stage = ASKED;
	wait_ms(timeout_ms);
	for (int i = rank + 1; i < members; i++) say(i, ELECTION);
}

static void hear(const struct message *m) {
	if (m->round < round_) return;
	enter(m->round);
	switch (m->word) {
	case NOTICE:
		ask();
		return;
	case ELECTION:
		if (leader == rank) { /* he came late */
			say(m->from, COORDINATOR);
			return;
		}
		if (stage == IDLE) ask();
		say(m->from, ANSWER);
		return;
	case ANSWER:
		if (stage != ASKED) return;
		stage = PROMISED;
		wait_ms(patience());
		return;
	case COORDINATOR:
		if (m->from < rank) ask(); /* not while I live */
		else if (m->from >= leader) { /* else his time-out was too short: I know better */
			leader = m->from, stage = IDLE;
			wait_ms(0);
		}
	}
}

static void late(void) {
	if (stage == ASKED) {
		waited += timeout_ms;
		win();
	} else if (stage == PROMISED) {
		waited += patience();
		again++;
		ask();
	}
}

static void tell(void) {
	struct message m = {.word = REPORT, .from = rank, .round = round_, .leader = leader, .waited = waited};
	memcpy(m.sent, sent, sizeof sent);
	if (leader == NOBODY || !memcmp(&m, &told, sizeof m)) return;
	told = m;
	post(parent, &m);
}

static void member(const char *back) {
	struct message m = {.word = HELLO, .from = rank};
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	void *in = pull(m.at, sizeof m.at);
	parent = push(back);
	post(parent, &m);
	zmq_pollitem_t on[] = {{.socket = in, .events = ZMQ_POLLIN}, {.fd = timer, .events = ZMQ_POLLIN}};
	for (;;) {
		uint64_t times;
		zmq_poll(on, 2, -1);
		while (zmq_recv(in, &m, sizeof m, ZMQ_DONTWAIT) == sizeof m) {
			if (m.word != SEAT) {
				hear(&m);
				continue;
			}
			if (to[m.from]) zmq_close(to[m.from]);
			to[m.from] = push(m.at);
		}
		if (read(timer, &times, sizeof times) == sizeof times) late();
		tell();
	}
}

/* The one that starts them. */

static pid_t pids[MOST];
static char at[MOST][64], home[64];
static void *in;
static struct message report[MOST];

static void start(int i, char *self) {
	char a[16], b[16], c[16];
	snprintf(a, sizeof a, "%d", i), snprintf(b, sizeof b, "%d", members), snprintf(c, sizeof c, "%d", timeout_ms);
	pid_t me = getpid();
	pids[i] = fork();
	if (pids[i] < 0) die("fork");
	if (pids[i] == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* it stays when another program is run */
		if (getppid() != me) _exit(1);
		execl(self, "bully", "member", a, b, c, home, NULL);
		_exit(1);
	}
}

static void take(struct message *m) {
	if (zmq_recv(in, m, sizeof *m, 0) != sizeof *m) die("no message came");
}

/* seat tells everybody where i is, and i where the others are. */
static void seat(int i) {
	struct message m = {.word = SEAT};
	if (to[i]) zmq_close(to[i]);
	to[i] = push(at[i]);
	for (int k = 0; k < members; k++) {
		if (k == i || !at[k][0]) continue;
		m.from = i;
		strcpy(m.at, at[i]);
		post(to[k], &m);
		m.from = k;
		strcpy(m.at, at[k]);
		post(to[i], &m);
	}
}

/* settle waits until all of the first n say that the same one leads. */
static void settle(int n) {
	struct message m;
	for (int agree = 0; agree < n;) {
		take(&m);
		if (m.word != REPORT || m.round != round_) continue;
		report[m.from] = m;
		agree = 0;
		for (int i = 0; i < n; i++) agree += report[i].round == round_ && report[i].leader == m.leader;
		leader = m.leader;
	}
}

/* rise has the highest lead. */
static void rise(void) {
	struct message m = {.word = NOTICE, .round = ++round_};
	post(to[members - 1], &m);
	settle(members);
}

static void election(int notice, char *self) {
	struct message m;
	int top = members - 1, words = 0, waits = 0, status;
	kill(pids[top], SIGKILL);
	waitpid(pids[top], &status, 0);
	double began = now();
	m = (struct message){.word = NOTICE, .round = ++round_};
	post(to[notice], &m);
	settle(top);
	double took = now() - began;
	for (int i = 0; i < top; i++) {
		for (int w = 0; w < 3; w++) words += report[i].sent[w];
		if (report[i].waited > waits) waits = report[i].waited;
	}
	printf("%d %d %f %d\n", leader, words, took, waits);
	fflush(stdout);
	start(top, self);
	do take(&m); while (m.word != HELLO);
	memcpy(at[top], m.at, sizeof m.at);
	seat(top);
	rise();
}

int main(int argc, char **argv) {
	ctx = zmq_ctx_new();
	if (argc == 6 && !strcmp(argv[1], "member")) {
		rank = atoi(argv[2]), members = atoi(argv[3]), timeout_ms = atoi(argv[4]);
		member(argv[5]);
	}
	if (argc != 3 || (members = atoi(argv[1])) < 2 || members > MOST || (timeout_ms = atoi(argv[2])) < 1) {
		fprintf(stderr, "usage: bully MEMBERS TIMEOUT, at most %d members\n", MOST);
		return 2;
	}
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0) return 1;
	self[n] = 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	in = pull(home, sizeof home);
	int limit = GIVE_UP, notice;
	zmq_setsockopt(in, ZMQ_RCVTIMEO, &limit, sizeof limit);
	for (int i = 0; i < members; i++) start(i, self);
	for (int i = 0; i < members; i++) {
		struct message m;
		take(&m);
		memcpy(at[m.from], m.at, sizeof m.at);
		seat(m.from);
	}
	rise();
	printf("ready\n");
	fflush(stdout);
	while (scanf("%d", &notice) == 1) {
		if (notice < 0 || notice >= members - 1) return 2;
		election(notice, self);
	}
	for (int i = 0; i < members; i++) kill(pids[i], SIGKILL);
	while (wait(NULL) > 0);
	return 0;
}
