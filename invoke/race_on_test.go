//go:build race

package invoke

// raceOn: the race detector makes everything several times slower.
const raceOn = true
