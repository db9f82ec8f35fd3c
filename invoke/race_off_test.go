//go:build !race

package invoke

const raceOn = false
