// Package bench measures Sluice from the outside: a real Postgres, real services,
// and clients that do what a client must and nothing else. Everything runs on one
// machine, so the numbers are of all of it together.
//
// `make bench` runs every scenario once and prints one JSON document with the
// machine, the results, and for each throughput the physical limit that was
// measured in the same run: how fast the same rows move without Sluice.
//
// Every stream sums up the checksums of what it is sent and compares at each
// checkpoint_complete.
//
// SLUICE_BENCH_SHORT=1 runs every scenario at a fiftieth of its size, to see that it
// runs. SLUICE_BENCH_MODE=suite measures the suite of processes instead of the one
// process of `sluice dev`.
package bench
