//go:build race

package storetest

// raced: the race detector makes everything ten times as slow.
const raced = true
