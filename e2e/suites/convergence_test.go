package suites

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

var convergeFor = flag.Duration("convergence.for", 25*time.Second, "how long TestConvergence writes and breaks things")

// A pair is a row in each of two tables, in the same group, whose numbers add up
// to 100; every transaction of the source keeps that, and the rows of the two
// tables travel in different buckets. Whoever sees anything else has seen a part
// of a transaction.
const convergenceSchema = `
CREATE TABLE members (id bigserial PRIMARY KEY, grp text NOT NULL, user_id text NOT NULL);
CREATE TABLE lefts (id text PRIMARY KEY, pair text NOT NULL, grp text NOT NULL, n int NOT NULL);
CREATE TABLE rights (id text PRIMARY KEY, pair text NOT NULL, grp text NOT NULL, n int NOT NULL);
CREATE TABLE notes (id text PRIMARY KEY, owner_id text NOT NULL, body text, n bigint, r double precision, done bool);
INSERT INTO lefts SELECT 'l' || i, 'seed' || i, 'g' || i % 6, i % 100 FROM generate_series(1, 300) i;
INSERT INTO rights SELECT 'r' || i, 'seed' || i, 'g' || i % 6, 100 - i % 100 FROM generate_series(1, 300) i;
INSERT INTO members(grp, user_id) VALUES ('g0', 'u0'), ('g1', 'u0'), ('g1', 'u1'), ('g2', 'u1'), ('g3', 'u2');
INSERT INTO notes SELECT 'seed' || i, 'u' || i % 3, 'note ' || i, i FROM generate_series(1, 300) i;
CREATE PUBLICATION powersync FOR ALL TABLES;
`

const convergenceConfig = `
config: {edition: 3}
streams:
  lefts:
    auto_subscribe: true
    query: SELECT * FROM lefts WHERE grp IN (SELECT grp FROM members WHERE user_id = auth.user_id())
  rights:
    auto_subscribe: true
    query: SELECT * FROM rights WHERE grp IN (SELECT grp FROM members WHERE user_id = auth.user_id())
  notes:
    auto_subscribe: true
    query: SELECT * FROM notes WHERE owner_id = auth.user_id()
`

// brokenPairs gives the pairs of which the client holds a state that was never committed.
const brokenPairs = `
SELECT pair, count(*) AS halves, sum(n) AS total, group_concat(side || ' ' || id || ' in ' || grp) AS held
FROM (SELECT 'left' AS side, id, pair, grp, n FROM lefts UNION ALL SELECT 'right', id, pair, grp, n FROM rights)
GROUP BY pair HAVING halves <> 2 OR total <> 100 OR count(DISTINCT grp) <> 1 OR count(DISTINCT side) <> 2`

var convergenceTables = map[string]map[string]string{
	"lefts":  {"pair": "text", "grp": "text", "n": "integer"},
	"rights": {"pair": "text", "grp": "text", "n": "integer"},
	"notes":  {"owner_id": "text", "body": "text", "n": "integer", "r": "real", "done": "integer"},
}

// convergence is one run: a seed, the writers of the source, and the clients.
type convergence struct {
	*world
	random  *rand.Rand // of the disturbances
	writes  *rand.Rand // of the local writes
	clients []*reader
	local   int // local writes so far
	reads   int
}

// reader is a client whose app looks at the pairs all the time it is open.
type reader struct {
	*harness.Client
	user    string
	options harness.ClientOptions
	online  bool
}

// TestConvergence holds D1, D4 and D6 at once: several real clients on both
// transports, local and source writes of every kind, gateways and the store
// restarted, connections cut, clients leaving and coming back, histories
// compacted. No client ever sees a part of a transaction; and at the end every
// client's SQLite holds what the query over Postgres gives, and nothing is left
// to upload. SLUICE_E2E_SEED repeats a run's choices.
func TestConvergence(t *testing.T) {
	seed := faultSeed(t)
	t.Logf("SLUICE_E2E_SEED=%d", seed)
	dir := harness.NeedsServers(t)
	c := &convergence{world: &world{pg: harness.StartPostgres(t, dir)}, random: rand.New(rand.NewPCG(seed, 0)), writes: rand.New(rand.NewPCG(seed, 100))}
	c.pg.Exec(convergenceSchema)
	c.sluice = harness.StartInstance(t, dir, c.pg, harness.Options{Mode: harness.Suite, SyncConfig: convergenceConfig})
	c.driver = harness.StartDriver(t, dir)
	for i, o := range []harness.ClientOptions{
		{Transport: "http"},
		{Transport: "websocket"},
		{Transport: "websocket", CheckpointMode: "requests"},
		{Transport: "http", CheckpointMode: "requests"},
		{Transport: "http"},
	} {
		user := fmt.Sprintf("u%d", i%3)
		o.Name, o.Schema, o.Endpoint = fmt.Sprintf("%s-%d", user, i), convergenceTables, c.sluice.URL()
		o.Token = harness.Token(t, user, time.Hour, nil)
		o.Upload = func(crud []harness.Crud) error { return c.upload(t, crud) }
		r := &reader{user: user, options: o}
		c.clients = append(c.clients, r)
		c.open(r)
	}
	for _, r := range c.clients {
		r.FirstSync(time.Minute)
	}
	c.equal(t, soon)

	var loads []*load
	for writer := range 2 {
		w := &pairWriter{random: rand.New(rand.NewPCG(seed, uint64(writer)+1)), prefix: fmt.Sprintf("w%d-", writer), members: writer == 0}
		loads = append(loads, start(t, c.pg, 20*time.Millisecond, w.transaction))
	}
	disturbances := c.disturb(t, *convergeFor)
	written := 0
	for _, l := range loads {
		written += l.stop()
	}
	for _, r := range c.clients {
		if !r.online {
			c.connect(r)
		}
	}
	took := c.equal(t, 2*time.Minute) // a client works off what it has buffered, one checkpoint after the other
	c.driver.Use(t)
	for _, r := range c.clients {
		c.look(t, r)
		r.Sound()
		if rows, err := r.Rows("SELECT count(*) FROM ps_crud"); err != nil || rows[0] != "0" {
			t.Errorf("client %s: upload queue: %v %v", r.options.Name, rows, err)
		}
		r.Close()
	}
	if c.reads == 0 {
		t.Error("no app has read anything meanwhile")
	}
	t.Logf("%d source transactions, %d local ones, %v; %d reads saw whole transactions only; equal %s after the last write",
		written, c.local, disturbances, c.reads, took.Round(time.Millisecond))
	if t.Failed() {
		t.Logf("SLUICE_E2E_SEED=%d go test ./e2e/suites -run TestConvergence -convergence.for=%s", seed, *convergeFor)
	}
}

// open opens a client's database, connects it, and lets its app read.
func (c *convergence) open(r *reader) {
	r.Client = c.driver.Open(r.options)
	c.connect(r)
	r.Check("pairs", brokenPairs)
}

func (c *convergence) connect(r *reader) {
	r.Connect()
	r.online = true
}

// look ends what open has begun and judges what the app has seen.
func (c *convergence) look(t *testing.T, r *reader) {
	t.Helper()
	reads, violations := r.CheckStop("pairs")
	c.reads += reads
	for _, v := range violations {
		t.Errorf("D1: client %s saw a part of a transaction: %s", r.options.Name, v)
	}
}

func (c *convergence) equal(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	var same []harness.Same
	for _, r := range c.clients {
		for _, table := range []string{"lefts", "rights"} {
			same = append(same, harness.Same{
				Client: r.Client,
				Local:  fmt.Sprintf("SELECT id, pair, grp, n FROM %s ORDER BY id", table),
				Source: fmt.Sprintf(`SELECT id, pair, grp, n FROM %s WHERE grp IN
					(SELECT grp FROM members WHERE user_id = '%s') ORDER BY id COLLATE "C"`, table, r.user),
			})
		}
		same = append(same, harness.Same{
			Client: r.Client,
			Local:  "SELECT id, body, CAST(n AS TEXT), r, done FROM notes ORDER BY id", // JavaScript has no 64-bit number
			Source: fmt.Sprintf(`SELECT id, body, n, r, done::int FROM notes WHERE owner_id = '%s' ORDER BY id COLLATE "C"`, r.user),
		})
	}
	return harness.Converged(t, c.pg, within, same...)
}

// disturb breaks something every half second or so, and lets clients write in
// between. Each kind happens once before any happens again, so that a short run
// has them all.
func (c *convergence) disturb(t *testing.T, d time.Duration) map[string]int {
	restart := func(name string, end func(string)) func() {
		return func() {
			end(name)
			c.sluice.Start(name)
		}
	}
	kinds := []struct {
		name string
		do   func()
	}{
		{"kill gateway 1", restart(harness.Gateway1, c.sluice.Kill)},
		{"stop gateway 2", restart(harness.Gateway2, c.sluice.Stop)},
		{"kill bucket-store", restart(harness.BucketStore, c.sluice.Kill)},
		{"stop bucket-store", restart(harness.BucketStore, c.sluice.Stop)},
		{"kill replicator", restart(harness.Replicator, c.sluice.Kill)},
		{"kill evaluator 1", restart(harness.Evaluator1, c.sluice.Kill)},
		{"cut all connections", c.sluice.Cut},
		{"compact", func() {
			if out, err := c.sluice.CLI("compact"); err != nil {
				t.Logf("compact, which the store's restart may have broken: %v %s", err, out)
			}
		}},
		{"disconnect or connect a client", c.toggle},
		{"disconnect or connect a client", c.toggle},
		{"close and open a client", func() { c.reopen(t) }},
	}
	done := map[string]int{}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var order []int
	for next, end := time.Now(), time.Now().Add(d); time.Now().Before(end); <-tick.C {
		if time.Now().Before(next) {
			if c.writes.IntN(8) == 0 {
				c.write()
			}
			continue
		}
		if len(order) == 0 {
			order = c.random.Perm(len(kinds))
		}
		kind := kinds[order[0]]
		order = order[1:]
		kind.do()
		done[kind.name]++
		next = time.Now().Add(time.Duration(100+c.random.IntN(900)) * time.Millisecond)
	}
	return done
}

func (c *convergence) any(random *rand.Rand) *reader {
	return c.clients[random.IntN(len(c.clients))]
}

func (c *convergence) toggle() {
	r := c.any(c.random)
	if r.online {
		r.Disconnect()
		r.online = false
	} else {
		c.connect(r)
	}
}

func (c *convergence) reopen(t *testing.T) {
	r := c.any(c.random)
	c.look(t, r)
	r.Sound()
	r.Close()
	c.open(r)
}

// write makes one local transaction of several statements, connected or not.
func (c *convergence) write() {
	r := c.any(c.writes)
	c.local++
	id := func(n int) string { return fmt.Sprintf("local-%s-%d", r.options.Name, n) }
	statements := []harness.Statement{
		{SQL: "INSERT INTO notes(id, owner_id, body, n) VALUES (?, ?, ?, ?)", Args: []any{id(c.local), r.user, "local", c.local}},
		{SQL: "UPDATE notes SET body = body || '+' WHERE id LIKE 'local-' || ? || '-%'", Args: []any{r.options.Name}},
	}
	if c.writes.IntN(3) == 0 {
		statements = append(statements, harness.Statement{
			SQL:  "DELETE FROM notes WHERE id IN (SELECT id FROM notes WHERE id LIKE 'local-' || ? || '-%' ORDER BY id LIMIT 2)",
			Args: []any{r.options.Name},
		})
	}
	r.Execute(statements...)
}

// upload is the app's backend. A client whose upload's answer was lost sends it again.
func (c *convergence) upload(t *testing.T, crud []harness.Crud) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.pg.URL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, e := range crud {
			var err error
			switch e.Op {
			case "PUT":
				_, err = tx.Exec(ctx, `INSERT INTO notes(id, owner_id, body, n) VALUES ($1, $2, $3, $4::int)
					ON CONFLICT (id) DO UPDATE SET body = excluded.body, n = excluded.n`, e.ID, e.Data["owner_id"], e.Data["body"], e.Data["n"])
			case "PATCH":
				_, err = tx.Exec(ctx, "UPDATE notes SET body = $2 || '!' WHERE id = $1", e.ID, e.Data["body"])
			case "DELETE":
				_, err = tx.Exec(ctx, "DELETE FROM notes WHERE id = $1", e.ID)
			default:
				err = fmt.Errorf("the backend knows no operation %s", e.Op)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// pairWriter makes transactions that keep what brokenPairs checks. It changes only
// rows of its own prefix, so that two of them never wait for each other.
type pairWriter struct {
	random  *rand.Rand
	prefix  string
	serial  int
	members bool // it also changes who is in which group
}

func (w *pairWriter) transaction(ctx context.Context, tx pgx.Tx) error {
	steps := []func(context.Context, pgx.Tx) error{
		w.create, w.create, w.transfer, w.transfer, w.transfer, w.move, w.move, w.rename, w.remove, w.replace,
		w.note, w.note, w.note, w.undo,
	}
	if w.members {
		steps = append(steps, w.member)
	}
	if w.random.IntN(40) == 0 {
		return w.turnAll(ctx, tx)
	}
	for range 1 + w.random.IntN(3) {
		if err := steps[w.random.IntN(len(steps))](ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func (w *pairWriter) id() string {
	w.serial++
	return fmt.Sprint(w.prefix, w.serial)
}

func (w *pairWriter) group() string { return fmt.Sprintf("g%d", w.random.IntN(6)) }
func (w *pairWriter) user() string  { return fmt.Sprintf("u%d", w.random.IntN(3)) }

// exec runs statements with the same arguments, one after the other.
func exec(ctx context.Context, tx pgx.Tx, args []any, statements ...string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// some picks a row of the writer's own; it is empty if there is none.
func (w *pairWriter) some(ctx context.Context, tx pgx.Tx, table, column string) (string, error) {
	var found string
	err := tx.QueryRow(ctx, fmt.Sprintf("SELECT %[2]s FROM %[1]s WHERE %[2]s LIKE $1 || '%%' ORDER BY md5(%[2]s || $2) LIMIT 1", table, column),
		w.prefix, fmt.Sprint(w.random.Uint64())).Scan(&found)
	if err == pgx.ErrNoRows {
		err = nil
	}
	return found, err
}

func (w *pairWriter) create(ctx context.Context, tx pgx.Tx) error {
	return w.insert(ctx, tx, "l"+w.id(), "r"+w.id(), w.id())
}

func (w *pairWriter) insert(ctx context.Context, tx pgx.Tx, left, right, pair string) error {
	n, group := w.random.IntN(100), w.group()
	if err := exec(ctx, tx, []any{left, pair, group, n}, "INSERT INTO lefts VALUES ($1, $2, $3, $4)"); err != nil {
		return err
	}
	return exec(ctx, tx, []any{right, pair, group, 100 - n}, "INSERT INTO rights VALUES ($1, $2, $3, $4)")
}

func (w *pairWriter) transfer(ctx context.Context, tx pgx.Tx) error {
	pair, err := w.some(ctx, tx, "lefts", "pair")
	if err != nil {
		return err
	}
	return exec(ctx, tx, []any{pair, w.random.IntN(30)}, "UPDATE lefts SET n = n - $2 WHERE pair = $1", "UPDATE rights SET n = n + $2 WHERE pair = $1")
}

func (w *pairWriter) move(ctx context.Context, tx pgx.Tx) error {
	pair, err := w.some(ctx, tx, "lefts", "pair")
	if err != nil {
		return err
	}
	return exec(ctx, tx, []any{pair, w.group()}, "UPDATE lefts SET grp = $2 WHERE pair = $1", "UPDATE rights SET grp = $2 WHERE pair = $1")
}

// rename gives both halves new keys, and at times the old ones to another pair.
func (w *pairWriter) rename(ctx context.Context, tx pgx.Tx) error {
	pair, err := w.some(ctx, tx, "lefts", "pair")
	if err != nil || pair == "" {
		return err
	}
	var left, right string
	err = tx.QueryRow(ctx, "SELECT l.id, r.id FROM lefts l JOIN rights r USING (pair) WHERE pair = $1", pair).Scan(&left, &right)
	if err != nil {
		return err
	}
	err = exec(ctx, tx, []any{pair, w.id()}, "UPDATE lefts SET id = 'l' || $2 WHERE pair = $1", "UPDATE rights SET id = 'r' || $2 WHERE pair = $1")
	if err == nil && w.random.IntN(2) == 0 {
		err = w.insert(ctx, tx, left, right, w.id())
	}
	return err
}

func (w *pairWriter) remove(ctx context.Context, tx pgx.Tx) error {
	pair, err := w.some(ctx, tx, "lefts", "pair")
	if err != nil {
		return err
	}
	return exec(ctx, tx, []any{pair}, "DELETE FROM lefts WHERE pair = $1", "DELETE FROM rights WHERE pair = $1")
}

// replace deletes a pair and inserts others in the same transaction under its keys.
func (w *pairWriter) replace(ctx context.Context, tx pgx.Tx) error {
	pair, err := w.some(ctx, tx, "lefts", "pair")
	if err != nil || pair == "" {
		return err
	}
	var left, right string
	if err := tx.QueryRow(ctx, "DELETE FROM lefts WHERE pair = $1 RETURNING id", pair).Scan(&left); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, "DELETE FROM rights WHERE pair = $1 RETURNING id", pair).Scan(&right); err != nil {
		return err
	}
	return w.insert(ctx, tx, left, right, w.id())
}

// undo breaks every pair inside a savepoint that is rolled back.
func (w *pairWriter) undo(ctx context.Context, tx pgx.Tx) error {
	inner, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := exec(ctx, inner, []any{w.prefix}, "UPDATE lefts SET n = n + 1000 WHERE pair LIKE $1 || '%'", "DELETE FROM rights WHERE pair LIKE $1 || '%'"); err != nil {
		return err
	}
	return inner.Rollback(ctx)
}

func (w *pairWriter) turnAll(ctx context.Context, tx pgx.Tx) error {
	return exec(ctx, tx, []any{w.prefix}, "UPDATE lefts SET n = 100 - n WHERE pair LIKE $1 || '%'", "UPDATE rights SET n = 100 - n WHERE pair LIKE $1 || '%'")
}

func (w *pairWriter) member(ctx context.Context, tx pgx.Tx) error {
	args := []any{w.group(), w.user()}
	if w.random.IntN(2) == 0 {
		return exec(ctx, tx, args, "DELETE FROM members WHERE grp = $1 AND user_id = $2")
	}
	return exec(ctx, tx, args, "INSERT INTO members(grp, user_id) VALUES ($1, $2)")
}

func (w *pairWriter) note(ctx context.Context, tx pgx.Tx) error {
	id, err := w.some(ctx, tx, "notes", "id")
	if err != nil {
		return err
	}
	bodies := []any{nil, "", "ä 🌊 \\ \" '", "line\nline", w.id()}
	body := bodies[w.random.IntN(len(bodies))]
	switch w.random.IntN(5) {
	case 0, 1:
		return exec(ctx, tx, []any{w.id(), w.user(), body, w.random.Int64() - 1<<62, float64(w.random.IntN(8000)) / 8, w.random.IntN(2) == 0},
			"INSERT INTO notes VALUES ($1, $2, $3, $4, $5, $6)")
	case 2:
		return exec(ctx, tx, []any{id, body}, "UPDATE notes SET body = $2, n = -n WHERE id = $1")
	case 3:
		return exec(ctx, tx, []any{id, w.user(), w.id()}, "UPDATE notes SET owner_id = $2, id = $3 WHERE id = $1")
	default:
		return exec(ctx, tx, []any{id}, "DELETE FROM notes WHERE id = $1")
	}
}

// TestPairWriterKeepsPairs holds that the load itself commits what it promises, so
// that a broken pair in a client is never the writer's.
func TestPairWriterKeepsPairs(t *testing.T) {
	dir := harness.NeedsServers(t)
	pg := harness.StartPostgres(t, dir)
	pg.Exec(convergenceSchema)
	w := &pairWriter{random: rand.New(rand.NewPCG(1, 1)), prefix: "w-", members: true}
	conn := pg.Connect()
	for i := range 300 {
		if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return w.transaction(t.Context(), tx) }); err != nil {
			t.Fatal(err)
		}
		if i%10 != 9 {
			continue
		}
		broken, err := pg.Rows(`SELECT pair FROM (SELECT pair, grp, n, 0 AS side FROM lefts UNION ALL SELECT pair, grp, n, 1 FROM rights) x
			GROUP BY pair HAVING count(*) <> 2 OR sum(n) <> 100 OR count(DISTINCT grp) <> 1 OR count(DISTINCT side) <> 2`)
		if err != nil || !slices.Equal(broken, nil) {
			t.Fatalf("after %d ids: broken pairs %v, %v", w.serial, broken, err)
		}
	}
}
