package spec

import (
	"fmt"
	"math"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"lode"
)

// ParseSize reads a size in bytes: 512, 64KiB, 1.5GiB, and 64MB for powers of
// ten.
func ParseSize(s string) (int64, error) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, wrong("want bytes as in 64MiB, 1GiB or 500KB", "%q is not a size", clip(s))
	}
	v, err := strconv.ParseFloat(m[1], 64)
	unit := sizeUnit[m[2]]
	if err != nil || v*unit > math.MaxInt64/2 {
		return 0, wrong("", "%q is too large", clip(s))
	}
	return int64(v * unit), nil
}

var (
	sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?(|B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$`)
	sizeUnit = map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
)

// ParseDuration reads 250ms, 30s, 15m, 2h, 7d, and sums of them such as 1h30m.
func ParseDuration(s string) (time.Duration, error) {
	bad := wrong("want 250ms, 30s, 15m, 2h or 7d", "%q is not a duration", clip(s))
	if s == "0" {
		return 0, nil
	}
	if days, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n < 0 || n > 36500 || math.IsNaN(n) {
			return 0, bad
		}
		d := time.Duration(n * float64(24*time.Hour))
		if rest == "" {
			return d, nil
		}
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 {
			return 0, bad
		}
		return d + more, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

// ParseCount reads 1000, 10k, 1M.
func ParseCount(s string) (int64, error) {
	num, unit := s, int64(1)
	switch {
	case strings.HasSuffix(s, "k"):
		num, unit = s[:len(s)-1], 1e3
	case strings.HasSuffix(s, "M"):
		num, unit = s[:len(s)-1], 1e6
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, wrong("want 1000, 10k or 1M", "%q is not a count", clip(s))
	}
	return n * unit, nil
}

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

var cronWords = map[string]string{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}

// checkCron checks five fields, or "@every 10s".
func checkCron(s string) error {
	const hint = `want five fields as in "0 3 * * *", or "@every 10s"`
	if every, ok := strings.CutPrefix(s, "@every "); ok {
		d, err := ParseDuration(strings.TrimSpace(every))
		if err != nil {
			return err
		}
		if d < time.Second {
			return wrong("", "@every %s is under a second", every)
		}
		return nil
	}
	if five := cronWords[s]; five != "" {
		return wrong(fmt.Sprintf("write %q", five), "%s is not taken", s)
	}
	if strings.Contains(s, "TZ=") {
		return wrong("write {cron: \"0 3 * * *\", zone: Europe/Vienna}", "a time zone has its own key")
	}
	if n := len(strings.Fields(s)); n == 6 {
		return wrong("leave the seconds out", "%q has six fields; cron has five", clip(s))
	}
	if _, err := safely(func() (cron.Schedule, error) { return cronParser.Parse(s) }); err != nil {
		return wrong(hint, "%q is not a cron expression: %v", clip(s), err)
	}
	return nil
}

// safely turns a panic of a parser of others into an error.
func safely[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return f()
}

// reserved are the node's own doors.
var reserved = []string{"/v1", "/fn", "/agents", "/queues", "/events", "/healthz", "/readyz", "/metrics", "/2015-03-31", "/2021-11-15"}

// checkPattern checks a pattern of http.ServeMux.
func checkPattern(s string) error {
	const hint = `want "[METHOD ][HOST]/path", as in "POST /orders/{id}"`
	method, rest, has := strings.Cut(s, " ")
	if !has {
		method, rest = "", s
	}
	if method != strings.ToUpper(method) {
		return wrong(fmt.Sprintf("write %q", strings.ToUpper(method)+" "+rest), "the method %s is not in capitals", clip(method))
	}
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		return wrong(hint, "%q has no path", clip(s))
	}
	for _, r := range reserved {
		if p := rest[slash:]; slash == 0 && (p == r || strings.HasPrefix(p, r+"/")) {
			return wrong("paths of the node itself: "+strings.Join(reserved, " "), "%s belongs to the node", clip(p))
		}
	}
	_, err := safely(func() (bool, error) {
		http.NewServeMux().Handle(s, http.NotFoundHandler())
		return true, nil
	})
	if err != nil {
		return wrong(hint, "%q is not a pattern: %s", clip(s), patternError(err))
	}
	return nil
}

// patternError drops what net/http says of its own source.
func patternError(err error) string {
	s := strings.ReplaceAll(err.Error(), "\n", " ")
	if i := strings.LastIndex(s, "): "); i >= 0 {
		return s[i+3:]
	}
	if i := strings.Index(s, ": "); i >= 0 {
		s = s[i+2:]
	}
	return s
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)

// checkHost checks "host[:port]": a name, an IPv4 address, or an IPv6 address
// in brackets.
func checkHost(s string) error {
	const hint = "want HOST or HOST:PORT, as in api.stripe.com or 10.0.0.5:5432"
	if strings.Contains(s, "/") {
		return wrong(hint, "%q is more than a host", clip(s))
	}
	host, port := s, ""
	if strings.HasPrefix(s, "[") || strings.Count(s, ":") == 1 {
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			host = s[1 : len(s)-1]
		} else {
			var err error
			if host, port, err = net.SplitHostPort(s); err != nil {
				return wrong(hint, "%q is not a host", clip(s))
			}
			if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
				return wrong("ports are 1 to 65535", "%q is not a port", clip(port))
			}
		}
	}
	if strings.Contains(host, ":") {
		if net.ParseIP(host) == nil || !strings.HasPrefix(s, "[") {
			return wrong("an IPv6 address stands in brackets: [2001:db8::1]:443", "%q is not a host", clip(s))
		}
		return nil
	}
	if strings.HasPrefix(host, "*") {
		return wrong("list the hosts one by one", "wildcards such as %q are not taken", clip(host))
	}
	if len(host) > 253 || !hostName.MatchString(host) {
		return wrong(hint, "%q is not a host", clip(s))
	}
	return nil
}

// checkOrigin checks "*" or an origin as browsers send it.
func checkOrigin(s string) error {
	if s == "*" {
		return nil
	}
	scheme, host, ok := strings.Cut(s, "://")
	if !ok || scheme != "http" && scheme != "https" || checkHost(host) != nil {
		return wrong(`want "*" or https://HOST[:PORT], without a path`, "%q is not an origin", clip(s))
	}
	return nil
}

var (
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
)

// checkEnvName checks the name of a variable or a secret.
func checkEnvName(s string) error {
	if !envName.MatchString(s) || len(s) > 128 {
		return wrong("want letters, digits and underscores, as in STRIPE_KEY", "%q is not the name of a variable", clip(s))
	}
	if strings.HasPrefix(s, "LODE_") {
		return wrong("", "names with LODE_ belong to Lode: %q", clip(s))
	}
	return nil
}

func checkRecords(s string) (lode.Records, error) {
	words := []string{"lines", "csv", "ndjson", "files", "fixed:N"}
	switch s {
	case "lines", "csv", "ndjson", "files":
		return lode.Records(s), nil
	case "parquet", "arrow":
		return "", wrong("use files, so that each file is one record", "this version of Lode has no records of the form %s yet", s)
	}
	if n, ok := strings.CutPrefix(s, "fixed:"); ok {
		if v, err := strconv.ParseInt(n, 10, 32); err == nil && v > 0 {
			return lode.Records(s), nil
		}
	}
	return "", oneOf(s, words)
}

// oneOf is the mistake of a word that is none of words.
func oneOf(s string, words []string) error {
	if near := lode.Suggest(strings.ToLower(s), words); near != "" {
		return wrong(fmt.Sprintf("did you mean %q?", near), "%q is none of %s", clip(s), strings.Join(words, ", "))
	}
	return wrong("", "%q is none of %s", clip(s), strings.Join(words, ", "))
}
