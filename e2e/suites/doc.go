// Package suites shows that a row written in Postgres reaches the official client
// SDK, in both modes, whatever fails on the way.
//
// One world is one Postgres, one instance of Sluice and one process of clients.
// The subtests of a world share it and keep apart by user ids.
package suites
