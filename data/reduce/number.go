package reduce

import (
	"bytes"
	"encoding/json"
	"math"
	"math/big"
	"math/bits"
	"strconv"

	"lode"
)

// exact is a sum of numbers: the whole ones exactly, the others as a float64
// beside them.
type exact struct {
	i     int64
	big   *big.Int // instead of i, where that is too small
	f     float64
	float bool // f counts
}

func (e *exact) add(r *exact) {
	switch {
	case e.big == nil && r.big == nil:
		s := e.i + r.i
		if (e.i < 0) == (r.i < 0) && (s < 0) != (e.i < 0) {
			e.big = new(big.Int).Add(big.NewInt(e.i), big.NewInt(r.i))
			break
		}
		e.i = s
	default:
		e.big = new(big.Int).Add(e.whole(), r.whole())
	}
	if r.float {
		e.f += r.f
		e.float = true
	}
}

func (e *exact) whole() *big.Int {
	if e.big != nil {
		return e.big
	}
	return big.NewInt(e.i)
}

// value is the sum as one number: whole, or a float64.
func (e *exact) value() (whole *big.Int, f float64) {
	if !e.float {
		return e.whole(), 0
	}
	w, _ := new(big.Float).SetInt(e.whole()).Float64()
	return nil, w + e.f
}

// compare is -1, 0 or 1, exactly, also between a large whole number and a
// float64.
func (e *exact) compare(r *exact) int {
	if !e.float && !r.float && e.big == nil && r.big == nil {
		switch {
		case e.i < r.i:
			return -1
		case e.i > r.i:
			return 1
		}
		return 0
	}
	return e.precise().Cmp(r.precise())
}

func (e *exact) precise() *big.Float {
	whole, f := e.value()
	if whole != nil {
		return new(big.Float).SetInt(whole)
	}
	return big.NewFloat(f)
}

func (e *exact) append(b []byte) ([]byte, error) {
	if !e.float {
		if e.big != nil {
			return e.big.Append(b, 10), nil
		}
		return strconv.AppendInt(b, e.i, 10), nil
	}
	_, f := e.value()
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return b, lode.Errorf(lode.Invalid, "the sum is not finite")
	}
	s, err := json.Marshal(f)
	return append(b, s...), err
}

// parseNumber reads a body that is one JSON number; false for an empty one and
// for null.
func parseNumber(body []byte) (exact, bool, error) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 || string(body) == "null" {
		return exact{}, false, nil
	}
	n, size, err := scanNumber(body)
	if err != nil || size != len(body) {
		return exact{}, false, lode.Errorf(lode.Invalid, "a partial result is %.40q, not a number", body).
			WithHint("this reducer wants each shard to answer one JSON number")
	}
	return n, true, nil
}

// most is the longest number that is read, in bytes: parsing takes quadratic
// time.
const most = 4096

// scanNumber reads the JSON number at the front of b and returns its length.
func scanNumber(b []byte) (exact, int, error) {
	i, neg := 0, false
	if i < len(b) && b[i] == '-' {
		i, neg = 1, true
	}
	first := i
	v := uint64(0)
	for ; i < len(b) && b[i]-'0' < 10; i++ {
		v = v*10 + uint64(b[i]-'0')
	}
	digits := i - first
	if digits == 0 || digits > 1 && b[first] == '0' {
		return exact{}, 0, errNumber(b)
	}
	if i < len(b) && (b[i] == '.' || b[i]|0x20 == 'e') {
		return scanFloat(b, i)
	}
	if digits <= 18 {
		if neg {
			return exact{i: -int64(v)}, i, nil
		}
		return exact{i: int64(v)}, i, nil
	}
	if digits > most {
		return exact{}, 0, errNumber(b)
	}
	n, ok := new(big.Int).SetString(string(b[:i]), 10)
	if !ok {
		return exact{}, 0, errNumber(b)
	}
	if n.IsInt64() {
		return exact{i: n.Int64()}, i, nil
	}
	return exact{big: n}, i, nil
}

// scanFloat goes on behind the whole digits of a number.
func scanFloat(b []byte, i int) (exact, int, error) {
	digits := func() bool {
		from := i
		for i < len(b) && b[i]-'0' < 10 {
			i++
		}
		return i > from
	}
	if b[i] == '.' {
		if i++; !digits() {
			return exact{}, 0, errNumber(b)
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return exact{}, 0, errNumber(b)
		}
	}
	if i > most {
		return exact{}, 0, errNumber(b)
	}
	f, err := strconv.ParseFloat(string(b[:i]), 64)
	if err != nil {
		return exact{}, 0, errNumber(b)
	}
	return exact{f: f, float: true}, i, nil
}

func errNumber(b []byte) error { return lode.Errorf(lode.Invalid, "%.40q is not a number", b) }

// addInts adds without overflow, or says that it cannot.
func addInts(a, b int64) (int64, bool) {
	s, _ := bits.Add64(uint64(a), uint64(b), 0)
	sum := int64(s)
	return sum, (a < 0) != (b < 0) || (sum < 0) == (a < 0)
}
