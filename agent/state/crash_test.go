package state_test

func applyForever(dir string) {}
