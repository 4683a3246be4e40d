// Package harness runs the whole of Sluice around one test: a real Postgres, the
// services in either mode, and real client databases of the official SDK; and it
// breaks each of them on request.
//
// Rules for whoever uses it:
//
//   - Nothing sleeps to let something happen: Eventually polls until a deadline.
//   - Every server has its own folder and free ports, and is stopped at the end
//     of its test, whatever the test's result. The logs are printed on failure.
//   - At the end of every instance its logs are searched for the secrets it was
//     given (D10), for data races and for panics; a find fails the test.
//   - Binaries are built by the harness, with the race detector if the test has it.
//   - A missing Postgres or Node fails the test; only -short skips, aloud.
package harness
